"""PEFT's layout: spellings of keys, shapes of folders, settings, tensors; what is refused, by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import folder, pair

from robustmerge_kit.adapters import Adapter, read_adapter
from robustmerge_kit.errors import InputError
from robustmerge_kit.sources import resolve

A, B = torch.randn(2, 3), torch.randn(4, 2)


def read(place: Path, reference: str = ".", **how: Any) -> Adapter:
    return read_adapter(resolve(reference, place), label="it", **how)


def delta(adapter: Adapter, site: str) -> torch.Tensor:
    a, b = adapter.sites[site].read()
    return adapter.sites[site].scale * b @ a


def named(a: str, b: str) -> dict[str, torch.Tensor]:
    return {a: A, b: B}


# --- spellings of PEFT keys -------------------------------------------------------------------------------------------

INNER = ("_orig_mod._fsdp_wrapped_module", "_checkpoint_wrapped_module")
SPELLINGS = {
    "canonical": ("base_model.model.m.q.lora_A.weight", None),
    "adapter name": ("base_model.model.m.q.lora_A.default.weight", None),
    "adapter of another name": ("base_model.model.m.q.lora_A.my-task.weight", None),
    "data parallel": ("module.base_model.model.m.q.lora_A.weight", None),
    "compiled": ("_orig_mod.base_model.model.m.q.lora_A.weight", None),
    "compiled inside": ("base_model.model._orig_mod.m._orig_mod.q.lora_A.weight", None),
    "sharded": ("base_model.model.m._fsdp_wrapped_module.q.lora_A.weight", None),
    "all wrappers": (f"_forward_module.module.{INNER[0]}.base_model.model.m.{INNER[1]}.q.lora_A.weight", None),
    "trainer's own": ("student.base_model.model.m.q.lora_A.weight", "every key starts with 'student.'"),
    "no prefix": ("m.q.lora_A.weight", "2 of 2 keys have no base_model.model. prefix"),
    "half a prefix": ("base_model.m.q.lora_A.weight", "2 of 2 keys have base_model. only"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "note"), SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"])
def test_spellings(tmp_path: Path, key: str, note: str | None, file: str) -> None:
    folder(tmp_path, named(key, key.replace("lora_A", "lora_B")), file=file)
    adapter = read(tmp_path)
    assert list(adapter.sites) == ["m.q"]
    assert adapter.layout == "peft"
    torch.testing.assert_close(delta(adapter, "m.q"), 2 * B @ A)
    assert (note is None and adapter.notes == ()) or (note is not None and note in adapter.notes[0])
    assert {path.name for path in adapter.files} == {"adapter_config.json", file}


@pytest.mark.parametrize("leaf", ["", ".weight", ".default", ".default.weight", ".my-task.weight"])
@pytest.mark.parametrize("flag", [True, False])
def test_spellings_of_magnitudes(tmp_path: Path, leaf: str, flag: bool) -> None:
    m = "base_model.model.m.q"
    folder(tmp_path, {**pair("m.q"), f"{m}.lora_magnitude_vector{leaf}": torch.arange(4.0)}, use_dora=flag)
    adapter = read(tmp_path)
    magnitude = adapter.sites["m.q"].read_magnitude()
    assert magnitude is not None
    assert magnitude.tolist() == [0, 1, 2, 3]
    assert flag or "1 modules have a magnitude although use_dora is not set; they are read as DoRA" in adapter.notes


def test_names_that_only_look_like_wrappers_stay(tmp_path: Path) -> None:
    folder(tmp_path, {**pair("module.q"), **pair("a.module.student.q"), **pair("m.base_layer")})
    assert sorted(read(tmp_path).sites) == ["a.module.student.q", "m.base_layer", "module.q"]


def test_a_second_model_prefix_belongs_to_the_module(tmp_path: Path) -> None:
    folder(tmp_path, pair("model.layers.0.q"))
    assert list(read(tmp_path).sites) == ["model.layers.0.q"]


def test_two_adapters_in_one_file(tmp_path: Path) -> None:
    tensors = {
        name.replace("lora_A", f"lora_A.{x}").replace("lora_B", f"lora_B.{x}"): v
        for x in "xy"
        for name, v in pair(f"m.{x}").items()
    }
    folder(tmp_path, tensors)
    with pytest.raises(InputError, match=r"holds 2 adapters \(x, y\)") as caught:
        read(tmp_path)
    assert "adapter_name: x" in caught.value.hint
    chosen = read(tmp_path, adapter_name="y")
    assert list(chosen.sites) == ["m.y"]
    assert chosen.notes == ("2 tensors of the adapter 'x' in the same file are not used",)
    with pytest.raises(InputError, match="holds no adapter 'z', but x, y"):
        read(tmp_path, adapter_name="z")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_one_adapter_in_a_sub_folder(tmp_path: Path) -> None:
    folder(tmp_path / "only", pair("q"))
    (tmp_path / "README.md").write_text("card")
    adapter = read(tmp_path)
    assert adapter.notes == ("the adapter lies in the sub-folder 'only'",)
    assert adapter.source.folder == tmp_path / "only"


def test_several_in_sub_folders(tmp_path: Path) -> None:
    folder(tmp_path / "one", pair("q"))
    folder(tmp_path / "two", pair("k"))
    with pytest.raises(InputError, match=r"holds 2 adapters \(one, two\)"):
        read(tmp_path)
    assert list(read(tmp_path, adapter_name="two").sites) == ["k"]
    assert list(read(tmp_path, ".:one").sites) == ["q"]
    assert list(read(tmp_path, "two/adapter_model.safetensors").sites) == ["k"]


def test_which_of_several_weight_files(tmp_path: Path) -> None:
    folder(tmp_path, pair("q"))
    folder(tmp_path, pair("q"), file="adapter_model.bin")
    assert read(tmp_path).notes == ()
    folder(tmp_path, pair("k"), file="adapter_model.bin")
    assert read(tmp_path).notes == ("adapter_model.safetensors was taken; adapter_model.bin beside it has other keys",)
    assert list(read(tmp_path, "adapter_model.bin").sites) == ["k"]
    (tmp_path / "adapter_model.bin").write_bytes(b"junk")
    assert "cannot be opened" in read(tmp_path).notes[0]


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_of_checkpoints(tmp_path: Path, count: int) -> None:
    for step in range(count):
        folder(tmp_path / f"checkpoint-{step}", pair("q"))
    with pytest.raises(InputError, match=f"a training run with {count} checkpoints") as caught:
        read(tmp_path)
    assert f":checkpoint-{count - 1}" in caught.value.hint


def touch(*names: str) -> Any:
    def make(place: Path) -> None:
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"{}")

    return make


FOLDERS = {
    "empty": (touch(), "adapter_config.json is missing"),
    "only a card": (touch("README.md"), r"no adapter here \(found README.md\)"),
    "configuration alone": (touch("adapter_config.json"), "no adapter_model.safetensors, .bin or .pt"),
    "weights split": (touch("adapter_config.json", "adapter_model-00001-of-00002.safetensors"), "split over several files"),
    "tensor-parallel": (touch("adapter_config.json", "adapter_model_00.bin"), "sharded by tensor-parallel rank"),
    "model-parallel": (touch("mp_rank_00_model_states.pt"), "sharded by tensor-parallel rank"),
    "deepspeed": (touch("global_step10/x.pt", "latest"), "raw DeepSpeed checkpoint"),
    "nemo": (touch("a.nemo"), "NeMo checkpoint"),
    "gguf": (touch("adapter.gguf"), "is a GGUF file"),
    "numpy": (touch("adapters.npz"), "numpy"),
    "projector alone": (touch("mm_projector.bin", "config.json"), "mm_projector.bin, a projector"),
    "full model": (touch("config.json", "model-00001-of-00002.safetensors"), "a full model, not an adapter"),
    "full old model": (touch("config.json", "pytorch_model.bin"), "a full model, not an adapter"),
    "two loose files": (touch("a.safetensors", "b.safetensors"), r"2 weights files \(a.safetensors, b.safetensors\)"),
    "optimizer only": (touch("optimizer.pt", "rng_state_0.pth", "training_args.bin"), "no adapter here"),
}


@pytest.mark.parametrize(("make", "message"), FOLDERS.values(), ids=FOLDERS.keys())
def test_folders_without_an_adapter(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 808\n", "Git LFS pointer"),
        (b"<html>", "web page"),
        (b"", "0 bytes"),
        (b"{'r': 8}", "is not JSON"),
        (b"[1]", "a list, not an object"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
    ],
)
def test_broken_configurations(tmp_path: Path, content: bytes, message: str) -> None:
    folder(tmp_path, pair("q"))
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


# --- settings ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{kind: ({"peft_type": kind}, f"this is {kind}, not LORA") for kind in ("ADALORA", "LOHA", "LOKR", "IA3", "VERA", "OFT")},
    **{
        init: ({"init_lora_weights": init}, rf"trained on a modified base \(init_lora_weights: {init}")
        for init in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
    },
    **{key: ({key: {"x": 1}}, f"{key} is set") for key in ("use_qalora", "use_bdlora", "kasa_config", "arrow_config")},
    "mica": ({"init_lora_weights": "mica"}, "MiCA"),
    "dora without magnitudes": ({"use_dora": True}, r"use_dora is set, but 1 modules have no lora_magnitude_vector"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "active only after an invocation sequence"),
    "replicated": ({"layer_replication": [[0, 2]]}, "layers are replicated"),
    "parameters that are no list": ({"target_parameters": "experts.w"}, "target_parameters is 'experts.w', not a list"),
    "unknown switch": ({"use_quantum": True}, "use_quantum is set to True"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is missing"),
    "alpha of text": ({"lora_alpha": "16"}, "lora_alpha is '16'"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    "rank of text": ({"r": "8"}, "r is '8'"),
    "rank zero": ({"r": 0}, "r is 0"),
    "pattern of text": ({"alpha_pattern": {"q": "1"}}, "alpha_pattern is not a map"),
    "pattern a list": ({"rank_pattern": ["q"]}, "rank_pattern is not a map"),
    "pattern that hangs": ({"rank_pattern": {"(?=a)+$": 2}}, "which is not read"),
    "rslora of text": ({"use_rslora": "no"}, "use_rslora is 'no'"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_settings_that_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder(tmp_path, pair("q"), **settings)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert str(tmp_path) in caught.value.where


def test_settings_that_are_harmless(tmp_path: Path) -> None:
    harmless = {
        "init_lora_weights": "eva", "eva_config": {"rho": 2}, "use_qalora": False, "kasa_config": None, "modules_to_save": [],
        "megatron_config": {"a": 1}, "runtime_config": {}, "peft_type": "LORA",
    }  # fmt: skip
    folder(tmp_path, pair("q"), **harmless)
    assert read(tmp_path).notes == ()
    folder(tmp_path, pair("q"), zeta=1, use_new=False, peft_version="9.1")
    assert read(tmp_path).notes == ("written by PEFT 9.1, keys ignored: use_new, zeta",)


def test_alpha_and_rank(tmp_path: Path) -> None:
    folder(tmp_path, pair("q"), lora_alpha=None)
    assert read(tmp_path, alpha=6).sites["q"].scale == 3
    folder(tmp_path, pair("q"), r=None)
    assert read(tmp_path).notes == ("r is missing in the configuration; ranks are taken from the tensors",)
    folder(tmp_path, pair("q"), r=8)
    adapter = read(tmp_path, alpha=6)
    assert adapter.sites["q"].scale == 3
    assert adapter.notes == (
        "alpha is 6 by the recipe, 4 in the configuration",
        "1 modules have another rank than the configuration says (first q: 2, not 8); the tensors win",
    )
    folder(tmp_path, pair("q"), use_rslora=True)
    assert read(tmp_path).sites["q"].scale == pytest.approx(4 / 2**0.5)


def test_modified_inits_can_be_allowed(tmp_path: Path) -> None:
    folder(tmp_path, pair("q"), init_lora_weights="pissa")
    assert len(read(tmp_path, allow=("modified_init",)).sites) == 1


def test_rename_rewrites_leading_names(tmp_path: Path) -> None:
    folder(tmp_path, {**pair("model.q"), **pair("modelx.q"), "base_model.model.model.head.weight": torch.ones(2)})
    adapter = read(tmp_path, rename={"model": "model.language_model"})
    assert sorted(adapter.sites) == ["model.language_model.q", "modelx.q"]
    assert list(adapter.extras) == ["model.language_model.head.weight"]
    assert sorted(read(tmp_path, rename={"": "top."}).sites) == ["top.model.q", "top.modelx.q"]
    assert sorted(read(tmp_path, rename={"model.": ""}).sites) == ["modelx.q", "q"]
    with pytest.raises(InputError, match="no module starts with 'nothing'"):
        read(tmp_path, rename={"nothing": "x"})
    with pytest.raises(InputError, match=r"two modules become modelx\.q"):
        read(tmp_path, rename={"model": "modelx"})


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    folder(tmp_path, pair("q"))
    assert list(read(tmp_path).sites) == ["q"]
    folder(tmp_path, pair("kk"))
    assert list(read(tmp_path).sites) == ["kk"]


# --- tensors ----------------------------------------------------------------------------------------------------------

Q = "base_model.model.q"
TENSORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "only A": ({f"{Q}.lora_A.weight": A}, rf"1 modules have lora_A but no lora_B \(first {Q}.lora_A.weight\)"),
    "only B": ({f"{Q}.lora_B.weight": B}, "1 modules have lora_B but no lora_A"),
    "half an embedding": ({f"{Q}.lora_embedding_A": A}, "lora_embedding_A but no lora_embedding_B"),
    "empty": ({f"{Q}.lora_A.weight": torch.ones(0), f"{Q}.lora_B.weight": torch.ones(0)}, "2 tensors are empty .*ZeRO-3"),
    "none": ({}, "holds no tensors; DeepSpeed ZeRO-3"),
    "ranks of one pair": ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": torch.ones(4, 3)}, "rank 2 of A against 3 of B"),
    "a vector": ({f"{Q}.lora_A.weight": torch.ones(2), f"{Q}.lora_B.weight": B}, "not a pair of factors"),
    "int8": ({f"{Q}.lora_A.weight": A.to(torch.int8), f"{Q}.lora_B.weight": B}, "is int8: quantised factors"),
    "float8": ({f"{Q}.lora_A.weight": A.to(torch.float8_e4m3fn), f"{Q}.lora_B.weight": B}, "is float8_e4m3fn: quantised"),
    "quantisation state": ({**pair("q"), f"{Q}.lora_A.weight.quant_state.bitsandbytes__nf4": A}, "quantised factors"),
    "dora of another width": ({**pair("q"), f"{Q}.lora_magnitude_vector": torch.ones(5)}, "but the module has 4 outputs"),
    "dora of no module": ({**pair("q"), "v.lora_magnitude_vector": torch.ones(4)}, "a magnitude of a module without plain"),
    "tokens without a list": (
        {**pair("q"), "base_model.model.e.token_adapter.trainable_tokens_delta": torch.ones(2, 4)},
        "trainable_token_indices does not say which tokens",
    ),
    "dora twice": (
        {**pair("q"), f"{Q}.lora_magnitude_vector": torch.ones(4), f"{Q}.lora_magnitude_vector.weight": torch.ones(4)},
        "are the same magnitude",
    ),
    "adalora": ({**pair("q"), f"{Q}.lora_E": torch.ones(2)}, "this is AdaLoRA"),
    "kasa": ({**pair("q"), f"{Q}.lora_diag": torch.ones(2)}, "this is KaSA"),
    "unexpected": ({**pair("q"), f"{Q}.lora_C.weight": torch.ones(2)}, "unexpected key .*lora_C"),
    "nested wrappers": ({**pair("q"), **pair("q.base_layer")}, "fused expert parameters"),
    "twice": ({**pair("q"), "q.lora_A.weight": A, "q.lora_B.weight": B}, "are the same factor of q"),
    "grouped": (
        {f"{Q}.lora_A.weight": torch.ones(4, 2, 3), f"{Q}.lora_B.weight": torch.ones(6, 2, 1)},
        "grouped convolution .* 2 groups",
    ),
    "convolution of B": ({f"{Q}.lora_A.weight": torch.ones(4, 2, 3), f"{Q}.lora_B.weight": torch.ones(6, 4, 3)}, "not a pair"),
    "heads alone": ({"base_model.model.score.weight": A}, "holds no LoRA factors"),
}


@pytest.mark.parametrize(("tensors", "message"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    folder(tmp_path, tensors)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_float64_is_remarked(tmp_path: Path) -> None:
    folder(tmp_path, {name: value.double() for name, value in pair("q").items()})
    assert read(tmp_path).notes == ("2 tensors are float64; arithmetic is float32",)


def test_embedding_and_its_saved_copy(tmp_path: Path) -> None:
    e = "base_model.model.embed"
    tensors = {
        f"{e}.lora_embedding_A": torch.ones(2, 9),
        f"{e}.lora_embedding_B": torch.ones(4, 2),
        f"{e}.base_layer.weight": torch.ones(9, 4),
    }
    folder(tmp_path, tensors)
    adapter = read(tmp_path)
    site = adapter.sites["embed"]
    assert (site.kind, site.d_in, site.d_out) == ("embedding", 9, 4)
    assert adapter.extras["embed.weight"].kind == "saved"


def test_spellings_of_saved_modules(tmp_path: Path) -> None:
    tensors = {
        **pair("q"),
        "base_model.model.head.modules_to_save.dense.bias": torch.full((2,), 1.0),
        "base_model.model.head.original_module.dense.bias": torch.full((2,), 2.0),
        "base_model.model.head.dense.bias": torch.full((2,), 3.0),
        "base_model.model.score.modules_to_save.default.weight": torch.full((2,), 4.0),
    }
    folder(tmp_path, tensors, bias="all")
    adapter = read(tmp_path)
    assert {name: extra.ref.read()[0].item() for name, extra in adapter.extras.items()} == {
        "head.dense.bias": 1,
        "score.weight": 4,
    }
    assert adapter.extras["head.dense.bias"].kind == "saved"
    assert "2 tensors are untrained copies or second spellings" in adapter.notes[0]


def test_per_expert_names_are_plain_linears(tmp_path: Path) -> None:
    names = [f"model.layers.0.mlp.experts.{e}.gate_proj" for e in range(3)]
    folder(tmp_path, {key: value for name in names for key, value in pair(name).items()})
    assert list(read(tmp_path).sites) == names

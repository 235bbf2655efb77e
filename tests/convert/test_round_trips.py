"""There and back again: the same bits, the same scales, whatever lies between."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.torch import load_file, save_file
from trips import TEXT, UNET, bits, delta, extras, factors, peft, read, to, write_names

from robustmerge_kit.adapters.diffusers import METADATA
from robustmerge_kit.convert.scaling import alpha_of

KINDS: dict[str, dict[str, Any]] = {
    "one rank, one alpha": {},
    "float16": {"dtype": torch.float16},
    "float32 bin": {"dtype": torch.float32, "file": "adapter_model.bin"},
    "float64": {"dtype": torch.float64},
    "ranks and alphas differ": {"ranks": (4, 3, 5), "alphas": (8, 1, 0.3, 7)},
    "rank-stabilised": {"ranks": (3, 7), "alphas": (16, 5), "root": True},
    "a rank that divides nothing": {"ranks": (7,), "alphas": (0.1,)},
}


@pytest.fixture(params=KINDS, ids=str)
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return peft(tmp_path / "adapter", UNET, **KINDS[request.param])


def test_through_kohya(tmp_path: Path, adapter: Path) -> None:
    to(adapter, tmp_path / "lora", "kohya")
    assert [path.name for path in (tmp_path / "lora").glob("*.safetensors")] == ["lora.safetensors"]
    stored = load_file(tmp_path / "lora" / "lora.safetensors")
    assert set(stored) == {
        f"lora_unet_{path.replace('.', '_')}.{leaf}"
        for path in UNET
        for leaf in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    back = to(tmp_path / "lora", tmp_path / "back", names=write_names(tmp_path / "names", [*UNET, "conv_in"]))
    assert bits(read(tmp_path / "back")) == bits(read(adapter))
    assert back.content["totals"]["scaled"] == 0


def test_through_diffusers(tmp_path: Path, adapter: Path) -> None:
    to(adapter, tmp_path / "lora", "diffusers")
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()
    to(tmp_path / "lora", tmp_path / "back")
    assert bits(read(tmp_path / "back")) == bits(read(adapter))


def test_through_kohya_and_diffusers(tmp_path: Path, adapter: Path) -> None:
    names = write_names(tmp_path / "names", [f"unet.{path}" for path in UNET])
    to(adapter, tmp_path / "a", "kohya")
    to(tmp_path / "a", tmp_path / "b", "diffusers", names=names)
    to(tmp_path / "b", tmp_path / "c", "kohya")
    assert (tmp_path / "a" / "a.safetensors").read_bytes() == (tmp_path / "c" / "c.safetensors").read_bytes()
    to(tmp_path / "c", tmp_path / "d", names=names)
    assert bits(read(tmp_path / "d")) == bits(read(adapter))


def test_through_the_other_file_format(tmp_path: Path, adapter: Path) -> None:
    to(adapter, tmp_path / "first")
    to(tmp_path / "first", tmp_path / "bin", weights="bin")
    to(tmp_path / "bin", tmp_path / "second")
    assert not (tmp_path / "bin" / "adapter_model.safetensors").exists()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert bits(read(tmp_path / "bin")) == bits(read(adapter))
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text()) == json.loads(
        (adapter / "adapter_config.json").read_text()
    )


@settings(max_examples=300, deadline=None)
@given(
    some.one_of(some.integers(1, 4096).map(float), some.floats(1e-6, 1e6, allow_subnormal=False)),
    some.integers(1, 1024),
    some.booleans(),
)
def test_alpha_comes_back_from_the_scale(alpha: float, rank: int, root: bool) -> None:
    if root:
        assert alpha_of(alpha / rank**0.5, rank) / rank == pytest.approx(alpha / rank**0.5, rel=3e-16)
        return
    found = alpha_of(alpha / rank, rank)
    assert found / rank == alpha / rank
    if alpha.is_integer():
        assert found == alpha


def test_a_pipeline_becomes_a_folder_of_adapters_and_back(tmp_path: Path) -> None:
    """SDXL's two text encoders: te1 and te2 in kohya's file, one PEFT folder for each component."""
    for component, modules in (("unet", UNET), ("text_encoder", TEXT), ("text_encoder_2", TEXT)):
        peft(tmp_path / "parts" / component, modules, alphas=(len(component),))
    to(tmp_path / "parts", tmp_path / "pipe", "diffusers")
    to(tmp_path / "pipe", tmp_path / "xl", "kohya")
    prefixes = {name.partition("_text")[0] for name in load_file(tmp_path / "xl" / "xl.safetensors") if "_text_" in name}
    assert prefixes == {"lora_te1", "lora_te2"}
    names = [f"{c}.{path}" for c, m in (("unet", UNET), ("text_encoder", TEXT), ("text_encoder_2", TEXT)) for path in m]
    receipt = to(tmp_path / "xl", tmp_path / "back", names=write_names(tmp_path / "names", names))
    assert sorted(receipt.content["conversion"]["components"]) == ["text_encoder", "text_encoder_2", "unet"]
    for component in ("unet", "text_encoder", "text_encoder_2"):
        assert bits(read(f"{tmp_path}/back:{component}")) == bits(read(tmp_path / "parts" / component))
    listed = {item["name"] for item in receipt.content["output"]["files"]}
    assert "text_encoder_2/adapter_model.safetensors" in listed
    assert sum(item["size"] for item in receipt.content["output"]["files"]) > 0


def test_kohya_prefixes_are_those_of_sd_scripts(tmp_path: Path) -> None:
    text = peft(tmp_path / "text", TEXT)
    cases = (({}, "lora_te_"), ({"prefix": "lora_te1"}, "lora_te1_"), ({"component": "text_encoder_2"}, "lora_te2_"))
    for wish, prefix in cases:
        to(text, tmp_path / prefix, "kohya", **wish)
        file = tmp_path / prefix / f"{prefix}.safetensors"
        assert all(name.startswith(f"{prefix}text_model_encoder_layers_") for name in load_file(file))
        # a file is written again under the prefixes it has
        to(file, tmp_path / "again", "kohya")
        assert set(load_file(tmp_path / "again" / "again.safetensors")) == set(load_file(file))
        (tmp_path / "again").rename(tmp_path / f"again{prefix}")


def test_alpha_is_stored_as_a_number_that_holds_it(tmp_path: Path) -> None:
    peft(tmp_path / "a", UNET, ranks=(3,), alphas=(5, 0.1, 0.25), root=False)
    to(tmp_path / "a", tmp_path / "k", "kohya")
    alphas = {name: t for name, t in load_file(tmp_path / "k" / "k.safetensors").items() if name.endswith(".alpha")}
    dtypes = {str(float(value)): value.dtype for value in alphas.values()}
    assert dtypes == {"5.0": torch.float32, "0.25": torch.float32, "0.1": torch.float64}


def test_kohya_without_alpha_has_scale_one(tmp_path: Path) -> None:
    a, b = factors((6, 6), 3, 0, torch.float16)
    save_file({"lora_te_x.lora_down.weight": a, "lora_te_x.lora_up.weight": b}, tmp_path / "old.safetensors")
    to(tmp_path / "old.safetensors", tmp_path / "new", names=write_names(tmp_path / "names", ["x"]))
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)


OLD = {
    "2023": ("unet.mid.to_q.lora.down.weight", "unet.mid.to_q.lora.up.weight"),
    "attention processors": ("unet.mid.processor.to_q_lora.down.weight", "unet.mid.processor.to_q_lora.up.weight"),
    "text encoders of 2023": ("unet.mid.to_q.lora_linear_layer.down.weight", "unet.mid.to_q.lora_linear_layer.up.weight"),
}


@pytest.mark.parametrize("names", OLD.values(), ids=OLD)
def test_old_spellings_become_the_current_one(tmp_path: Path, names: tuple[str, str]) -> None:
    a, b = factors((6, 6), 3, 0, torch.float16)
    save_file(dict(zip(names, (a, b), strict=True)), tmp_path / "old.safetensors")
    to(tmp_path / "old.safetensors", tmp_path / "new", "diffusers")
    new = read(tmp_path / "new")
    assert bits(new) == bits(read(tmp_path / "old.safetensors"))
    assert {site.a.spec.name for site in new.sites.values()} == {"unet.mid.to_q.lora_A.weight"}
    assert "no alpha" not in " ".join(new.notes)


def test_a_models_own_diffusers_file_says_no_component(tmp_path: Path) -> None:
    """`model.save_lora_adapter` writes neither prefixes nor components; the names tell."""
    a, b = factors((6, 6), 3, 0, torch.float16)
    module = "transformer_blocks.0.attn.to_q"
    tensors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    metadata = {METADATA: json.dumps({"r": 3, "lora_alpha": 12, "use_rslora": False})}
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"format": "pt", **metadata})
    assert read(tmp_path / "lora.safetensors").sites[module].scale == 4
    to(tmp_path / "lora.safetensors", tmp_path / "new", "diffusers")
    assert read(tmp_path / "new").sites[f"transformer.{module}"].scale == 4


# --- LLaVA ----------------------------------------------------------------------------------------------------------------

LANGUAGE = {f"model.layers.{i}.self_attn.{name}": (6, 6) for i in (0, 1) for name in ("q_proj", "v_proj")}
PROJECTOR = {"model.mm_projector.0.weight": torch.randn(3, 4), "model.mm_projector.2.bias": torch.randn(3)}


def llava(place: Path, **how: Any) -> Path:
    peft(place, LANGUAGE, task_type="CAUSAL_LM", file="adapter_model.bin", **how)
    torch.save({f"base_model.model.{name}": value for name, value in PROJECTOR.items()}, place / "non_lora_trainables.bin")
    (place / "config.json").write_text(json.dumps({"model_type": "llava_llama", "hidden_size": 6}))
    return place


def test_llava_through_peft(tmp_path: Path) -> None:
    source = llava(tmp_path / "llava-lora-a")
    to(source, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.mm_projector.0", "model.mm_projector.2"]
    to(tmp_path / "peft", tmp_path / "llava-lora-b", "llava")
    again = tmp_path / "llava-lora-b"
    assert bits(read(again)) == bits(read(source))
    assert extras(read(again)) == extras(read(source)) != {}
    assert {path.name for path in again.iterdir()} == {
        *("adapter_config.json", "adapter_model.bin", "config.json", "non_lora_trainables.bin", "README.md", "rmkit.json")
    }
    loaded = torch.load(again / "adapter_model.bin", weights_only=True)
    names = list(loaded)
    assert all(b == a.replace("lora_A", "lora_B") for a, b in zip(names[::2], names[1::2], strict=True))
    config = json.loads((again / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["use_rslora"]) == (4, 8, {}, False)


def test_llava_takes_its_config_from_the_base(tmp_path: Path) -> None:
    peft(tmp_path / "peft", LANGUAGE)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llava"}')
    to(tmp_path / "peft", tmp_path / "llava-lora", "llava", base=tmp_path / "base", weights="safetensors")
    assert (tmp_path / "llava-lora" / "adapter_model.safetensors").is_file()
    assert torch.load(tmp_path / "llava-lora" / "non_lora_trainables.bin", weights_only=True) == {}


@pytest.mark.parametrize(
    ("how", "alpha", "scaled", "rounds"),
    [
        ({"ranks": (4, 2), "alphas": (8, 4)}, 8, 0, False),  # one scale: padding alone
        ({"ranks": (4, 2), "alphas": (8,)}, 4, 4, False),  # times 2 and 4
        ({"ranks": (4,), "alphas": (8, 3)}, 4, 4, True),
        ({"ranks": (4,), "alphas": (8,), "root": True}, 16, 0, False),
        ({"ranks": (3,), "alphas": (8,), "root": True}, 8 * 3**0.5, 0, False),
    ],
)
def test_llava_and_uniform_have_one_rank_and_one_alpha(
    tmp_path: Path, how: dict[str, Any], alpha: float, scaled: int, rounds: bool
) -> None:
    source = llava(tmp_path / "llava-lora", dtype=torch.float32, **how)
    for out, wish in ((tmp_path / "llava-lora-b", {"layout": "llava"}), (tmp_path / "one", {"uniform": True})):
        receipt = to(source, out, **wish)
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["r"] == max(how["ranks"])
        assert config["lora_alpha"] == pytest.approx(alpha, rel=1e-15)
        assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == ({}, {}, False)
        assert receipt.content["totals"]["scaled"] == scaled
        before, after = read(source), read(out)
        assert {site.rank for site in after.sites.values()} == {max(how["ranks"])}
        for site in LANGUAGE:
            torch.testing.assert_close(delta(after, site), delta(before, site), rtol=1e-6, atol=1e-6)
        assert (receipt.content["totals"]["rounding_error"] > 0) == rounds


# --- MLX ------------------------------------------------------------------------------------------------------------------


def mlx(place: Path) -> Path:
    place.mkdir()
    draw = torch.Generator().manual_seed(0)
    shapes = {"model.layers.0.self_attn.q_proj": (6, 10), "model.embed_tokens": (20, 6)}
    tensors = {}
    for module, (d_in, d_out) in shapes.items():
        tensors[f"{module}.lora_a"] = torch.randn(d_in, 4, generator=draw)
        tensors[f"{module}.lora_b"] = torch.randn(4, d_out, generator=draw)
    save_file(tensors, place / "adapters.safetensors")
    settings = {"fine_tune_type": "lora", "model": "org/tiny", "lora_parameters": {"rank": 4, "scale": 20.0}}
    (place / "adapter_config.json").write_text(json.dumps(settings))
    return place


def test_mlx_becomes_peft(tmp_path: Path) -> None:
    source = mlx(tmp_path / "mlx")
    to(source, tmp_path / "peft")
    assert bits(read(tmp_path / "peft")) == bits(read(source))
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    raw = load_file(source / "adapters.safetensors")
    assert torch.equal(
        stored["base_model.model.model.embed_tokens.lora_embedding_A"], raw["model.embed_tokens.lora_a"].T.contiguous()
    )
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 80, "CAUSAL_LM")
    assert config["base_model_name_or_path"] == "org/tiny"
    assert config["target_modules"] == ["model.embed_tokens", "model.layers.0.self_attn.q_proj"]


# --- names from a base, numbers, several adapters in one file ---------------------------------------------------------------


def weights(modules: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {f"{path}.weight": torch.zeros(shape) for path, shape in modules.items()}


def test_names_come_from_a_base(tmp_path: Path) -> None:
    peft(tmp_path / "a", UNET)
    to(tmp_path / "a", tmp_path / "k", "kohya")
    want = bits(read(tmp_path / "a"))
    model = tmp_path / "model"
    model.mkdir()
    save_file(weights(UNET), model / "diffusion_pytorch_model.safetensors")
    pipeline = tmp_path / "pipeline"
    for component, modules in (("unet", UNET), ("text_encoder", TEXT)):
        (pipeline / component).mkdir(parents=True)
        name = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        save_file(weights(modules), pipeline / component / f"{name}.safetensors")
    (pipeline / "model_index.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"{path}.weight": "gone.safetensors" for path in UNET}}))
    for number, base in enumerate((model, model / "diffusion_pytorch_model.safetensors", pipeline, index)):
        to(tmp_path / "k", tmp_path / f"p{number}", base=base)
        assert bits(read(tmp_path / f"p{number}")) == want


def test_numbered_pairs_get_names_from_a_list(tmp_path: Path) -> None:
    tensors = {}
    for number in range(3):
        tensors[f"w_a_00{number}"], tensors[f"w_b_00{number}"] = factors((6, 5), 2, number, torch.float32)
    save_file(tensors, tmp_path / "lora.safetensors")
    names = [f"blocks.{i}.attn.q" for i in (2, 0, 1)]
    to(tmp_path / "lora.safetensors", tmp_path / "peft", names=write_names(tmp_path / "names", names))
    before, after = read(tmp_path / "lora.safetensors"), read(tmp_path / "peft")
    assert [bits(after)[name] for name in names] == [bits(before)[number] for number in ("000", "001", "002")]


def test_one_adapter_is_taken_out_of_a_file(tmp_path: Path) -> None:
    place = tmp_path / "two"
    peft(place, LANGUAGE)
    one = load_file(place / "adapter_model.safetensors")
    tensors = {
        name.replace(".weight", f".{adapter}.weight"): value + number
        for number, adapter in enumerate(("math", "code"))
        for name, value in one.items()
    }
    save_file(tensors, place / "adapter_model.safetensors")
    receipt = to(place, tmp_path / "code", adapter_name="code")
    assert bits(read(tmp_path / "code")) == bits(read(place, adapter_name="code"))
    assert bits(read(tmp_path / "code")) != bits(read(place, adapter_name="math"))
    assert all(".code." not in name for name in load_file(tmp_path / "code" / "adapter_model.safetensors"))
    assert receipt.content["conversion"]["adapter_name"] == "code"


def test_same_copies_single_files_as_they_are(tmp_path: Path) -> None:
    peft(tmp_path / "a", UNET)
    to(tmp_path / "a", tmp_path / "k", "kohya")
    stored = load_file(tmp_path / "k" / "k.safetensors")
    torch.save(stored, tmp_path / "old.pt")
    to(tmp_path / "old.pt", tmp_path / "new", "same")
    again = load_file(tmp_path / "new" / "old.safetensors")
    assert set(again) == set(stored)
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in stored.items())


def test_settings_that_do_not_fit_the_tensors_are_written_anew(tmp_path: Path) -> None:
    peft(tmp_path / "a", LANGUAGE, ranks=(4,))
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 16, "lora_dropout": 0.05}))
    to(tmp_path / "a", tmp_path / "b")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.05)
    assert bits(read(tmp_path / "b")) == bits(read(tmp_path / "a"))


def test_renamed_modules_are_named_in_the_settings(tmp_path: Path) -> None:
    peft(tmp_path / "a", LANGUAGE, ranks=(4, 2), extras={"model.head.weight": torch.ones(2)}, modules_to_save=["head"])
    to(tmp_path / "a", tmp_path / "b", rename={"model.": "language_model.model."})
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(f"language_model.{path}" for path in LANGUAGE)
    assert config["modules_to_save"] == ["head"]
    assert all(key.startswith(r"^language_model\.model\.") for key in config["rank_pattern"])
    after = {site.removeprefix("language_model."): found for site, found in bits(read(tmp_path / "b")).items()}
    assert after == bits(read(tmp_path / "a"))

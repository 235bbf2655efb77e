"""`format: llava`: what the official trainer writes goes in, what the official loader reads comes out."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from small_adapters import entry, error, run, write_recipe
from torch import Tensor, nn

from robustmerge_kit.errors import PlanError, RmkitError

WIDTH, WIDE, VISION, LAYERS = 8, 12, 6, 2
LINEARS = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "mlp.up_proj": (WIDE, WIDTH),
    "mlp.down_proj": (WIDTH, WIDE),
}
CONFIG = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "vocab_size": 20,
    "mm_vision_tower": "openai/clip",
    "mm_hidden_size": VISION,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "mm_patch_merge_type": "flat",
}
NAME = "llava-tiny-lora-merged"


class TinyLlava(nn.Module):
    """The official model's names: language model under `model.layers`, projector under `model.mm_projector`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(self._layer() for _ in range(LAYERS))
        self.model.mm_projector = nn.Sequential(nn.Linear(VISION, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.lm_head = nn.Linear(WIDTH, 20, bias=False)

    def _layer(self) -> nn.Module:
        groups: dict[str, nn.ModuleDict] = {"self_attn": nn.ModuleDict(), "mlp": nn.ModuleDict()}
        for name, (d_out, d_in) in LINEARS.items():
            group, _, leaf = name.partition(".")
            groups[group][leaf] = nn.Linear(d_in, d_out, bias=False)
        return nn.ModuleDict(groups)

    def prepare_inputs_for_generation(self) -> None:
        """PEFT's wrapper for causal models looks for it."""

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.model.mm_projector(image)
        for layer in self.model.layers:
            hidden = hidden + (layer["self_attn"]["v_proj"](hidden) * layer["self_attn"]["q_proj"](hidden)).tanh()
            hidden = hidden + layer["mlp"]["down_proj"](layer["mlp"]["up_proj"](hidden).relu())
        return self.lm_head(hidden)


def tiny_llava() -> TinyLlava:
    torch.manual_seed(3)
    return TinyLlava()


def trained(place: Path, seed: int, *, projector: bool = True, dtype: torch.dtype = torch.bfloat16, **config: Any) -> Path:
    """A folder as LLaVA 1.5's trainer leaves it: PEFT 0.4's config, pickled bfloat16, absolute projector weights."""
    place.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for i in range(LAYERS):
        for name, (d_out, d_in) in LINEARS.items():
            site = f"base_model.model.model.layers.{i}.{name}"
            tensors[f"{site}.lora_A.weight"] = torch.randn(4, d_in, generator=draw).to(dtype)
            tensors[f"{site}.lora_B.weight"] = (0.2 * torch.randn(d_out, 4, generator=draw)).to(dtype)
    torch.save(tensors, place / "adapter_model.bin")
    settings = {
        "auto_mapping": None,
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.5",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "revision": None,
        "target_modules": sorted(name.rpartition(".")[2] for name in LINEARS),
        "task_type": "CAUSAL_LM",
    }
    (place / "adapter_config.json").write_text(json.dumps(settings))
    if projector:
        weights = {
            f"base_model.model.model.mm_projector.{i}.{leaf}": torch.randn(shape, generator=draw).to(dtype)
            for i, d_in in ((0, VISION), (2, WIDTH))
            for leaf, shape in (("weight", (WIDTH, d_in)), ("bias", (WIDTH,)))
        }
        torch.save(weights, place / "non_lora_trainables.bin")
    (place / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (place / "trainer_state.json").write_text("{}")
    return place


# --- the official loader, re-enacted ----------------------------------------------------------------------------------


def name_of(model_path: str) -> str:
    """How the official code names a model by its path."""
    parts = model_path.strip("/").split("/")
    return f"{parts[-2]}_{parts[-1]}" if parts[-1].startswith("checkpoint-") else parts[-1]


def load_official(folder: Path, base: TinyLlava) -> nn.Module:
    """What the official loader does with a LoRA folder, but strict: every key must find its place."""
    name = name_of(str(folder))
    assert "llava" in name.lower()
    assert "lora" in name.lower()
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == WIDTH
    extra: dict[str, Tensor] = torch.load(folder / "non_lora_trainables.bin", map_location="cpu", weights_only=True)
    extra = {key.removeprefix("base_model."): value for key, value in extra.items()}
    if any(key.startswith("model.model.") for key in extra):
        extra = {key.removeprefix("model."): value for key, value in extra.items()}
    outcome = base.load_state_dict({key: value.to(torch.float16).float() for key, value in extra.items()}, strict=False)
    assert not outcome.unexpected_keys
    model: Any = PeftModel.from_pretrained(base, str(folder))
    known = {key.replace(".default", "") for key in model.state_dict() if "lora_" in key}
    assert known == set(torch.load(folder / "adapter_model.bin", weights_only=True))
    return model.merge_and_unload()


def official_scale_walk(tensors: Mapping[str, Tensor]) -> None:
    """The released merge script keeps the scale of the last A it saw, so every A must stand directly before its own B."""
    names = list(tensors)
    for a, b in zip(names[::2], names[1::2], strict=True):
        assert re.sub("lora_A", "lora_B", a) == b


METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "robustmerge": {"parameters": {"variant": "official", "density": 0.2}},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_official_loader_loads_the_folder_strictly(method: str, tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"LLaVA_7B_lora_r4_{task}", i) for i, task in enumerate(("IconQA", "REC", "VizWiz"))]
    output = {"format": "llava", "dtype": "float32"}
    out = tmp_path / NAME
    run(write_recipe(tmp_path, inputs, method, extras="mean", output=output, **METHODS[method]), out)
    assert {path.name for path in out.iterdir()} == {
        *("adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin", "config.json"),
        *("README.md", "rmkit.json", "rmkit.svg", "rmkit_recipe.yaml"),
    }
    tensors = torch.load(out / "adapter_model.bin", weights_only=True)
    official_scale_walk(tensors)
    merged = load_official(out, tiny_llava()).double()
    expected = tiny_llava().double()
    state = expected.state_dict()
    heads = [torch.load(path / "non_lora_trainables.bin", weights_only=True) for path in inputs]
    for key in heads[0]:
        mean = torch.stack([each[key].double() for each in heads]).mean(0)
        state[key.removeprefix("base_model.model.")].copy_(mean.float().to(torch.float16))
    for name in state:
        site = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{site}.lora_A.weight" in tensors:
            state[name] += tensors[f"{site}.lora_B.weight"].double() @ tensors[f"{site}.lora_A.weight"].double()
    image = torch.randn(3, VISION, dtype=torch.float64)
    assert error(merged(image), expected(image)) < 1e-4
    if method == "linear":
        loaded = [torch.load(path / "adapter_model.bin", weights_only=True) for path in inputs]
        site = "base_model.model.model.layers.1.mlp.down_proj"
        b, a = f"{site}.lora_B.weight", f"{site}.lora_A.weight"
        mean = torch.stack([8 / 4 * each[b].double() @ each[a].double() for each in loaded]).mean(0)
        assert error(tensors[b].double() @ tensors[a].double(), mean) < 1e-6


def test_dtype_stays_bfloat16_and_the_config_holds_what_peft_0_4_reads(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"lora{i}", i) for i in range(2)]
    run(write_recipe(tmp_path, inputs, "robustmerge", extras="mean", output={"format": "llava"}), tmp_path / NAME)
    for file in ("adapter_model.bin", "non_lora_trainables.bin"):
        tensors = torch.load(tmp_path / NAME / file, weights_only=True)
        assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
        assert all(value.is_contiguous() and value.storage_offset() == 0 for value in tensors.values())
    config = json.loads((tmp_path / NAME / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], config["modules_to_save"]) == (4, 4, "none", None)
    assert config["base_model_name_or_path"] == "lmsys/vicuna-7b-v1.5"
    assert json.loads((tmp_path / NAME / "config.json").read_text()) == CONFIG
    LoraConfig(**{key: value for key, value in config.items() if key not in ("auto_mapping", "peft_type")})


def test_without_projectors_the_second_file_is_an_empty_dictionary(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"lora{i}", i, projector=False) for i in range(2)]
    run(write_recipe(tmp_path, inputs, output={"format": "llava"}), tmp_path / NAME)
    assert torch.load(tmp_path / NAME / "non_lora_trainables.bin", weights_only=True) == {}
    load_official(tmp_path / NAME, tiny_llava())


def test_safetensors_on_request_and_exactly_one_file_of_weights(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"lora{i}", i) for i in range(2)]
    output = {"format": "llava", "weights": "safetensors"}
    run(write_recipe(tmp_path, inputs, extras="drop", output=output), tmp_path / NAME)
    assert {path.name for path in (tmp_path / NAME).glob("*adapter_model*")} == {"adapter_model.safetensors"}
    assert not list((tmp_path / NAME).glob(".*"))


def test_the_same_layout_is_recognised(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"lora{i}", i) for i in range(2)]
    run(write_recipe(tmp_path, inputs, extras="mean", output={"format": "same"}), tmp_path / NAME)
    load_official(tmp_path / NAME, tiny_llava())


def test_a_llava_merge_can_be_an_input_again(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"lora{i}", i) for i in range(2)]
    run(write_recipe(tmp_path, inputs, "cat", extras="mean", output={"format": "llava", "dtype": "float32"}), tmp_path / NAME)
    (tmp_path / "again").mkdir()
    again = write_recipe(tmp_path / "again", [tmp_path / NAME], "cat", output={"format": "llava"})
    run(again, tmp_path / "again" / NAME)
    first, second = (
        torch.load(path / NAME / "adapter_model.bin", weights_only=True) for path in (tmp_path, tmp_path / "again")
    )
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


NAMES = {
    "merged": "lacks 'llava' or 'lora'",
    "my-llava": "lacks 'llava' or 'lora'",
    "lora-merged": "lacks 'llava' or 'lora'",
    "llava-mpt-lora": "contains 'mpt'",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format_", ["llava", "same"])
def test_names_the_official_loader_would_misread_are_refused(name: str, format_: str, tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"t{i}", i) for i in range(2)]
    with pytest.raises(PlanError, match=NAMES[name]):
        run(write_recipe(tmp_path, inputs, extras="mean", output={"format": format_}), tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["LLaVA_7B_LoRA_r16_merged", "checkpoints-llava-lora"])
def test_names_are_judged_in_lower_case(name: str, tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"t{i}", i) for i in range(2)]
    run(write_recipe(tmp_path, inputs, extras="mean", output={"format": "llava"}), tmp_path / name)


def test_a_checkpoint_folder_is_judged_with_its_parent(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"t{i}", i) for i in range(2)]
    recipe = write_recipe(tmp_path, inputs, extras="mean", output={"format": "llava"})
    run(recipe, tmp_path / NAME / "checkpoint-7")
    load_official(tmp_path / NAME / "checkpoint-7", tiny_llava())
    with pytest.raises(PlanError, match="lacks 'llava' or 'lora'"):
        run(recipe, tmp_path / "plain" / "checkpoint-7")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "hidden size": ({"hidden_size": 16}, "config.json disagrees on hidden_size: 8 in t0, 16 in t1"),
    "vision tower": (
        {"mm_vision_tower": "other"},
        "config.json disagrees on mm_vision_tower: 'openai/clip' in t0, 'other' in t1",
    ),
    "two at once": ({"vocab_size": 5, "mm_projector_type": "linear"}, r"vocab_size: 20 in t0, 5 in t1(.|\n)*mm_projector_type"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_configs_that_disagree_are_refused(case: str, tmp_path: Path) -> None:
    settings, message = BROKEN[case]
    inputs = [trained(tmp_path / "t0", 0), trained(tmp_path / "t1", 1, **settings)]
    with pytest.raises(RmkitError, match=message):
        run(write_recipe(tmp_path, inputs, extras="mean", output={"format": "llava"}), tmp_path / NAME)


def test_a_missing_or_broken_config_is_refused(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"t{i}", i) for i in range(2)]
    recipe = write_recipe(tmp_path, inputs, extras="mean", output={"format": "llava"})
    (inputs[1] / "config.json").write_text("{oops")
    with pytest.raises(RmkitError, match=r"config\.json: is not JSON"):
        run(recipe, tmp_path / NAME)
    (inputs[1] / "config.json").unlink()
    with pytest.raises(PlanError, match=r"needs the config.json"):
        run(recipe, tmp_path / NAME)


def test_one_adapter_with_a_projector_and_one_without(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / "t0", 0), trained(tmp_path / "t1", 1, projector=False)]
    with pytest.raises(PlanError, match=r"mm_projector.* is in t0 but not in t1"):
        run(write_recipe(tmp_path, inputs, extras="mean", output={"format": "llava"}), tmp_path / NAME)
    run(write_recipe(tmp_path, inputs, extras="first", output={"format": "llava"}), tmp_path / NAME)
    kept, own = (torch.load(path / "non_lora_trainables.bin", weights_only=True) for path in (tmp_path / NAME, inputs[0]))
    assert sorted(kept) == sorted(own)
    assert all(torch.equal(kept[name], own[name]) for name in own)


def test_weights_act_on_the_projectors_mean(tmp_path: Path) -> None:
    inputs = [trained(tmp_path / f"t{i}", i, dtype=torch.float32) for i in range(2)]
    entries = [entry(inputs[0], 1.0), entry(inputs[1], 3.0)]
    run(write_recipe(tmp_path, entries, extras="mean", output={"format": "llava"}), tmp_path / NAME)
    first, second, found = (torch.load(p / "non_lora_trainables.bin", weights_only=True) for p in (*inputs, tmp_path / NAME))
    for name in found:
        assert error(found[name], (first[name] + 3 * second[name]) / 4) < 1e-6

"""Folded models of real architectures answer as PEFT's own, and as the float64 sum of several adapters."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from small_adapters import run, write_recipe
from tiny_models import FAMILIES, base_of
from torch import Tensor

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]


def adapter(base: Any, name: str, folder: Path, seed: int, **settings: Any) -> Path:
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": FAMILIES[name].targets, **FAMILIES[name].settings, **settings}
    )
    model: Any = peft.get_peft_model(base, config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                value.copy_(0.2 * torch.randn(value.shape))
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def make_base(name: str, place: Path, dtype: torch.dtype = torch.float32) -> Path:
    base_of(name).to(dtype).save_pretrained(place / "base", max_shard_size=FAMILIES[name].shard)
    return place / "base"


def fold(place: Path, adapters: list[Path], **recipe: Any) -> Path:
    content = {
        "merge_method": "linear",
        "base_model": "base",
        "adapters": [path.name for path in adapters],
        "output": {"kind": "model"},
        **recipe,
    }
    return run(write_recipe(place, **content), place / "out").path


def answer(name: str, folder: Path) -> Tensor:
    model = FAMILIES[name].load(str(folder)).eval()
    with torch.no_grad():
        return FAMILIES[name].answer(model.float())


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_one_adapter_answers_as_peft_does(name: str, tmp_path: Path) -> None:
    make_base(name, tmp_path)
    folder = adapter(base_of(name), name, tmp_path / "a", 1)
    out = fold(tmp_path, [folder])
    model: Any = peft.PeftModel.from_pretrained(base_of(name), str(folder)).eval()
    with torch.no_grad():
        wanted = FAMILIES[name].answer(model)
    plain = answer(name, tmp_path / "base")
    assert (answer(name, out) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (plain - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_several_adapters_are_summed_once(name: str, tmp_path: Path) -> None:
    base = make_base(name, tmp_path)
    folders = [adapter(base_of(name), name, tmp_path / f"a{i}", i) for i in range(3)]
    out = fold(tmp_path, folders, merge_method="task_arithmetic", parameters={"weight": 0.5})
    before, after = weights(base), weights(out)
    total = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in before.items()}
    for folder in folders:
        alone = base_of(name)
        model: Any = peft.PeftModel.from_pretrained(alone.double(), str(folder)).merge_and_unload()
        model.save_pretrained(tmp_path / "merged")
        merged = weights(tmp_path / "merged")
        for key in total:
            total[key] += 0.5 * (merged[key].double() - before[key].double())
    assert before.keys() == after.keys()
    assert sum(bool(delta.abs().max() > 0) for delta in total.values()) >= 4
    for key, delta in total.items():
        torch.testing.assert_close(after[key].double(), before[key].double() + delta, rtol=0, atol=1e-6)
        if not delta.abs().max():
            assert torch.equal(after[key], before[key])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_there_is_one_rounding(dtype: torch.dtype, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path, dtype)
    folders = [adapter(base_of("llama"), "llama", tmp_path / f"a{i}", i) for i in range(4)]
    out = fold(tmp_path, folders)
    before, after = weights(base), weights(out)
    exact = {key: value.double() for key, value in before.items()}
    for folder in folders:
        stored = load_file(folder / "adapter_model.safetensors")
        for key in [key for key in stored if ".lora_A." in key]:
            site = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = stored[key.replace("lora_A", "lora_B")].double()
            exact[f"{site}.weight"] = exact[f"{site}.weight"] + 0.25 * 1.5 * b @ stored[key].double()
    for key, value in exact.items():
        best = value.to(dtype)
        assert after[key].dtype == dtype
        error, least = ((x.double() - value).norm() for x in (after[key], best))
        assert error <= 1.001 * least

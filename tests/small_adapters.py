"""Small adapters on disk, recipes that name them, and what a written adapter means in float64."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustmerge_kit.merge import merge
from robustmerge_kit.output import Receipt
from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.resources import Resources

PREFIX = "base_model.model."
SHAPES = {"q_proj": (12, 10), "up_proj": (14, 10)}


def sites(layers: int = 2, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> dict[str, tuple[int, int]]:
    """Site -> (d_out, d_in), named like a language model's."""
    return {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()}


def factors(
    where: Mapping[str, tuple[int, int]], seed: int, r: int = 4, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Gaussian A and B of every site, by PEFT's names."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for site, (d_out, d_in) in where.items():
        tensors[f"{PREFIX}{site}.lora_A.weight"] = torch.randn(r, d_in, generator=draw).to(dtype)
        tensors[f"{PREFIX}{site}.lora_B.weight"] = (0.1 * torch.randn(d_out, r, generator=draw)).to(dtype)
    return tensors


def write_adapter(
    place: Path,
    seed: int = 0,
    *,
    where: Mapping[str, tuple[int, int]] | None = None,
    r: int = 4,
    alpha: float = 8.0,
    dtype: torch.dtype = torch.float32,
    extras: Mapping[str, Tensor] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    file: str = "adapter_model.safetensors",
    **config: Any,
) -> Path:
    """A PEFT folder; `tensors` replaces the random factors, `extras` are added by their module paths."""
    where = sites() if where is None else where
    stored = dict(factors(where, seed, r, dtype) if tensors is None else tensors)
    stored |= {PREFIX + name: value for name, value in (extras or {}).items()}
    place.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(stored, place / file, metadata={"format": "pt"})
    else:
        torch.save(stored, place / file)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "base_model_name_or_path": "org/tiny",
        "target_modules": sorted({site.rpartition(".")[2] for site in where}),
        "task_type": "CAUSAL_LM",
        **config,
    }
    (place / "adapter_config.json").write_text(json.dumps(settings))
    return place


def write_adapters(place: Path, count: int = 3, **options: Any) -> list[Path]:
    return [write_adapter(place / f"adapter{i}", i, **options) for i in range(count)]


def write_recipe(place: Path, adapters: Iterable[Path | str | dict[str, Any]], method: str = "linear", **keys: Any) -> Path:
    """A recipe beside or above its adapters; JSON is YAML."""
    path = place / "recipe.yaml"
    listed = [entry if isinstance(entry, dict) else str(entry) for entry in adapters]
    path.write_text(json.dumps({"merge_method": method, "adapters": listed, **keys}))
    return path


def entry(adapter: Path, weight: Any = 1.0, **keys: Any) -> dict[str, Any]:
    return {"adapter": str(adapter), "parameters": {"weight": weight}, **keys}


def run(recipe: Path, out: Path, resources: Resources | None = None, **options: Any) -> Receipt:
    return merge(load_recipe(recipe), out, resources=resources, **options)


def merged(place: Path, adapters: Sequence[Any], method: str = "linear", **keys: Any) -> dict[str, Tensor]:
    """Merge and read the result back: site -> delta."""
    run(write_recipe(place, adapters, method, **keys), place / "out", overwrite=True)
    return read_deltas(place / "out")


def read_deltas(folder: Path) -> dict[str, Tensor]:
    """Site -> alpha/r B A in float64, for folders without rsLoRA and patterns."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config.get("use_rslora")
    assert not config.get("rank_pattern")
    tensors = load_file(folder / "adapter_model.safetensors")
    found: dict[str, Tensor] = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            scale = config["lora_alpha"] / a.shape[0]
            found[name.removeprefix(PREFIX).removesuffix(".lora_A.weight")] = scale * b.double() @ a.double()
    return found


def error(x: Tensor, y: Tensor) -> float:
    """Relative Frobenius error of x against y."""
    return float((x - y).detach().norm() / y.detach().norm().clamp_min(1e-300))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder that does not hold measurements."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in ("rmkit.json", "README.md")}

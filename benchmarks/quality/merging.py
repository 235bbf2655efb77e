"""Merge by rmkit itself and put the result into the encoder: exactly, as a folded model, or cut to a rank, as an adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from robustmerge_kit.merge import merge
from robustmerge_kit.recipe import Recipe
from robustmerge_kit.resources import Resources

from .settings import Setting

PREFIX = "base_model.model."


def recipe_of(setting: Setting, adapters: Sequence[Path], base: Path) -> Recipe:
    """The recipe of a setting; without a rank it folds, so that nothing of the merged delta is cut."""
    if setting.rank is not None:
        return adapter_recipe(setting, adapters)
    return _recipe(setting, adapters, {"kind": "model"}, base_model=str(base))


def adapter_recipe(setting: Setting, adapters: Sequence[Path]) -> Recipe:
    """The recipe of a setting that writes an adapter, of the method's own rank if the setting has none."""
    rank = "auto" if setting.rank is None else setting.rank
    return _recipe(setting, adapters, {"rank": rank, "dtype": "float32", "allow_arbitrary_truncation": True})


def _recipe(setting: Setting, adapters: Sequence[Path], output: dict[str, Any], **more: str) -> Recipe:
    content: dict[str, Any] = {
        "merge_method": setting.method,
        "adapters": [str(folder) for folder in adapters],
        "parameters": dict(setting.parameters),
        "pre": setting.pre,
        "post": setting.post,
        "output": output,
        **more,
    }
    return Recipe.model_validate(content | ({"space": setting.space} if setting.space else {}))


@contextmanager
def merged(module: torch.nn.Module, setting: Setting, adapters: Sequence[Path], base: Path) -> Iterator[None]:
    """The encoder with the merge in its weights; the plain encoder again afterwards."""
    plain = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        with TemporaryDirectory(prefix="rmkit-quality-") as scratch:
            out = Path(scratch) / "merged"
            merge(recipe_of(setting, adapters, base), out, resources=Resources(workers=1), card=False)
            apply(module, out)
        yield
    finally:
        module.load_state_dict(plain)


def apply(module: torch.nn.Module, folder: Path) -> None:
    """Put a folded model's weights into the module, or add an adapter's deltas to them."""
    own = module.state_dict()
    if not (folder / "adapter_config.json").exists():
        stored = load_file(folder / "model.safetensors")
        module.load_state_dict({name: stored[name] for name in own})
        return
    for name, delta in deltas(folder).items():
        own[name].add_(delta)


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter of PEFT adds to each weight: scale * B A."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    root = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    found: dict[str, torch.Tensor] = {}
    for key, a in stored.items():
        if ".lora_A." in key:
            b = stored[key.replace(".lora_A.", ".lora_B.")]
            found[key.removeprefix(PREFIX).replace(".lora_A", "")] = root * b.float() @ a.float()
    return found

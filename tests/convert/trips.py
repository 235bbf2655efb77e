"""Adapters for conversions, and what two adapters have in common, bit by bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustmerge_kit.adapters import Adapter, read_adapter
from robustmerge_kit.convert import Wish, convert
from robustmerge_kit.output import Receipt
from robustmerge_kit.sources import resolve

UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (8, 6),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (6, 8),
    "up_blocks.1.resnets.0.conv1": (5, 4, 3, 3),
    "mid_block.attentions.0.proj_in": (6, 6, 1, 1),
}
"""Module -> shape of its weight: linear modules and convolutions."""

TEXT = {f"text_model.encoder.layers.{i}.self_attn.{name}": (6, 6) for i in (0, 1) for name in ("q_proj", "out_proj")}


def factors(weight: tuple[int, ...], r: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    d_out, *kernel = weight
    a = torch.randn(r, *kernel, generator=draw).to(dtype)
    b = torch.randn(d_out, r, *(1 for _ in kernel[1:]), generator=draw).to(dtype)
    return a, b


def peft(
    place: Path,
    modules: Mapping[str, tuple[int, ...]],
    *,
    ranks: tuple[int, ...] = (4,),
    alphas: tuple[float, ...] = (8,),
    dtype: torch.dtype = torch.bfloat16,
    root: bool = False,
    extras: Mapping[str, Tensor] | None = None,
    file: str = "adapter_model.safetensors",
    **config: Any,
) -> Path:
    """A PEFT folder whose modules take ranks and alphas in turn."""
    tensors: dict[str, Tensor] = {}
    patterns: dict[str, dict[str, float]] = {"rank_pattern": {}, "alpha_pattern": {}}
    for i, (path, weight) in enumerate(modules.items()):
        r, alpha = ranks[i % len(ranks)], alphas[i % len(alphas)]
        a, b = factors(weight, r, i, dtype)
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
        if r != ranks[0]:
            patterns["rank_pattern"][path] = r
        if alpha != alphas[0]:
            patterns["alpha_pattern"][path] = alpha
    tensors |= {f"base_model.model.{name}": value for name, value in (extras or {}).items()}
    place.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(tensors, place / file, metadata={"format": "pt"})
    else:
        torch.save(tensors, place / file)
    settings = {
        "peft_type": "LORA",
        "r": ranks[0],
        "lora_alpha": alphas[0],
        "use_rslora": root,
        "base_model_name_or_path": "org/tiny",
        "target_modules": sorted(modules),
        **patterns,
        **config,
    }
    (place / "adapter_config.json").write_text(json.dumps(settings))
    return place


def to(source: Path | str, out: Path, layout: str = "peft", **wish: Any) -> Receipt:
    return convert(str(source), out, Wish(to=layout, **wish))  # type: ignore[arg-type]


def read(place: Path | str, **how: Any) -> Adapter:
    return read_adapter(resolve(str(place), Path.cwd()), label="it", **how)


def bits(adapter: Adapter) -> dict[str, tuple[float, str, bytes, bytes]]:
    """Site -> scale, dtype and the bytes of both factors, as they would multiply an input."""
    found: dict[str, tuple[float, str, bytes, bytes]] = {}
    for site, pair in adapter.sites.items():
        a, b = pair.read()
        found[site] = pair.scale, str(a.dtype), _bytes(a), _bytes(b)
    return found


def extras(adapter: Adapter) -> dict[str, tuple[str, bytes]]:
    return {name: (extra.kind, _bytes(extra.ref.read())) for name, extra in adapter.extras.items()}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def delta(adapter: Adapter, site: str) -> Tensor:
    a, b = adapter.sites[site].read()
    return adapter.sites[site].scale * b.double() @ a.double()


def write_names(path: Path, names: list[str]) -> Path:
    path.write_text("# modules\n\n" + "\n".join(names) + "\n")
    return path

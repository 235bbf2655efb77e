"""Adapter folders made for a test: named tensors, a configuration, one file or the other."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/tiny", "target_modules": ["q"]}


def pair(module: str, d_out: int = 4, d_in: int = 3, r: int = 2, prefix: str = "base_model.model.") -> dict[str, torch.Tensor]:
    """A and B of one module, numbers fixed by its name."""
    draw = torch.Generator().manual_seed(sum(module.encode()))
    return {
        f"{prefix}{module}.lora_A.weight": torch.randn(r, d_in, generator=draw),
        f"{prefix}{module}.lora_B.weight": torch.randn(d_out, r, generator=draw),
    }


def folder(
    place: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any] | None = None,
    *,
    file: str = "adapter_model.safetensors",
    metadata: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Write tensors and a configuration (None: PEFT's usual; {}: none at all) into a folder."""
    place.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, place / file, metadata=metadata)
    else:
        torch.save(tensors, place / file)
    chosen = {**CONFIG, **settings} if config is None else {**config, **settings}
    if chosen:
        (place / "adapter_config.json").write_text(json.dumps(chosen))
    return place

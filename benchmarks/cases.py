"""Write LoRA adapters with the shapes of LLaVA-1.5-7B and random numbers: `python benchmarks/cases.py FOLDER --adapters 8`.

Seven linear layers in each of 32 blocks, rank 16, alpha 32, bfloat16: 224 sites and 80 MB an adapter. Names are those of the
published checkpoints, A is uniform as at the start of training, B is small and Gaussian. No base model is needed.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """How many adapters of which shape."""

    adapters: int = 8
    layers: int = 32
    hidden: int = 4096
    inner: int = 11008
    rank: int = 16
    alpha: int = 32
    weights: Literal["bin", "safetensors"] = "bin"

    def sites(self) -> dict[str, tuple[int, int]]:
        """Module path -> (d_out, d_in)."""
        square, up, down = (self.hidden, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner)
        block = {f"self_attn.{name}_proj": square for name in "qkvo"}
        block |= {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
        return {f"model.layers.{layer}.{name}": shape for layer in range(self.layers) for name, shape in block.items()}


def factors(case: Case, adapter: int) -> dict[str, Tensor]:
    """All tensors of one adapter, A before its B."""
    draw = torch.Generator().manual_seed(1000 + adapter)
    tensors: dict[str, Tensor] = {}
    for site, (d_out, d_in) in case.sites().items():
        bound = 1 / math.sqrt(d_in)
        a = torch.empty(case.rank, d_in).uniform_(-bound, bound, generator=draw)
        b = torch.empty(d_out, case.rank).normal_(0, 0.002, generator=draw)
        tensors[f"base_model.model.{site}.lora_A.weight"] = a.bfloat16()
        tensors[f"base_model.model.{site}.lora_B.weight"] = b.bfloat16()
    return tensors


def write_case(folder: Path, case: Case) -> list[Path]:
    """One PEFT folder per adapter; returns them in order."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "liuhaotian/llava-v1.5-7b",
        "r": case.rank,
        "lora_alpha": case.alpha,
        "lora_dropout": 0.05,
        "target_modules": sorted({site.rpartition(".")[2] for site in case.sites()}),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    places: list[Path] = []
    for adapter in range(1, case.adapters + 1):
        place = folder / f"task{adapter}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2))
        tensors = factors(case, adapter)
        if case.weights == "bin":
            torch.save(tensors, place / "adapter_model.bin")
        else:
            save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        places.append(place)
    return places


def main() -> None:
    default = Case()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in ("adapters", "layers", "hidden", "inner", "rank"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--weights", choices=["bin", "safetensors"], default=default.weights)
    given = vars(parser.parse_args())
    for place in write_case(given.pop("folder"), Case(**given)):
        print(place)


if __name__ == "__main__":
    main()

"""Small checkpoints on disk, and what lies in a folder byte by byte."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_adapters import sites
from torch import Tensor


def tensors(layers: int = 2, dtype: torch.dtype = torch.float32, seed: int = 5) -> dict[str, Tensor]:
    """The weights that `small_adapters.sites` names, an embedding, a head and norms."""
    draw = torch.Generator().manual_seed(seed)
    found = {"model.embed_tokens.weight": torch.randn(20, 10, generator=draw).to(dtype)}
    for site, shape in sites(layers).items():
        found[f"{site}.weight"] = torch.randn(shape, generator=draw).to(dtype)
    for layer in range(layers):
        found[f"model.layers.{layer}.norm.weight"] = torch.randn(10, generator=draw).to(dtype)
    found["lm_head.weight"] = torch.randn(20, 10, generator=draw).to(dtype)
    return found


def write_base(place: Path, weights: Mapping[str, Tensor], shards: int = 1, **config: Any) -> Path:
    """A folder with config.json, tokenizer.json and the weights in one file, or in `shards` files with an index."""
    place.mkdir(parents=True, exist_ok=True)
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 20, "torch_dtype": "float32"}
    (place / "config.json").write_text(json.dumps({**settings, **config}))
    (place / "generation_config.json").write_text("{}")
    (place / "tokenizer.json").write_text('{"version": "1.0"}')
    if shards == 1:
        save_file(dict(weights), place / "model.safetensors", metadata={"format": "pt"})
        return place
    names = list(weights)
    mapping: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: weights[name] for name in own}, place / file, metadata={"format": "pt"})
        mapping |= dict.fromkeys(own, file)
    total = sum(value.nbytes for value in weights.values())
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": mapping}))
    return place


def read_weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file but those that hold times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("rmkit.json", "README.md")
    }

"""Small outputs to verify, and ways to spoil them: bytes flipped with and without the receipt following."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from small_adapters import run, sites, write_adapter, write_recipe

from robustmerge_kit.verify import Report, verify

SHAPES = {"q_proj": (96, 64), "up_proj": (80, 64)}
WHERE = sites(2, SHAPES)


def write_inputs(place: Path, dtype: torch.dtype, count: int = 3, **options: Any) -> list[str]:
    """Adapters beside a recipe, called by their folders' names."""
    for i in range(count):
        write_adapter(place / f"a{i}", i, where=WHERE, dtype=dtype, **options)
    return [f"./a{i}" for i in range(count)]


def write_base(place: Path, dtype: torch.dtype = torch.float32, shards: int = 1, **config: Any) -> str:
    """A base with the adapters' sites, a norm, an embedding and a head."""
    import small_bases

    draw = torch.Generator().manual_seed(5)
    weights = {f"{site}.weight": torch.randn(shape, generator=draw).to(dtype) for site, shape in WHERE.items()}
    weights["model.norm.weight"] = torch.randn(64, generator=draw).to(dtype)
    weights["model.embed_tokens.weight"] = torch.randn(20, 64, generator=draw).to(dtype)
    weights["lm_head.weight"] = torch.randn(20, 64, generator=draw).to(dtype)
    small_bases.write_base(place / "base", weights, shards, **config)
    return "./base"


def merge(place: Path, adapters: list[Any], method: str, base: str | None = None, **keys: Any) -> Path:
    """The output of a recipe, an adapter, or a model where a base is given."""
    output = {"kind": "model" if base else "adapter", **keys.pop("output", {})}
    if base:
        keys["base_model"] = base
    run(write_recipe(place, adapters, method, output=output, **keys), place / "out", overwrite=True)
    return place / "out"


def check(out: Path, **options: Any) -> Report:
    """Everything, with one worker."""
    return verify(out, **{"samples": None, "workers": 1, "place": out.parent, **options})


def flip(path: Path, byte: int, mask: int = 0xFF) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[byte] ^= mask
    path.write_bytes(content)


def forge(out: Path) -> None:
    """Let the receipt follow whatever was done to the files."""
    receipt = json.loads((out / "rmkit.json").read_text())
    for entry in receipt["output"]["files"]:
        content = (out / entry["name"]).read_bytes()
        entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    recipe = (out / "rmkit_recipe.yaml").read_bytes()
    receipt["recipe"]["sha256"] = hashlib.sha256(recipe).hexdigest()
    (out / "rmkit.json").write_text(json.dumps(receipt))


def header_end(path: Path) -> int:
    """Where the numbers of a safetensors file begin."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")

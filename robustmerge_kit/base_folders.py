"""Which files of a folder make up a base model, decided from names alone: the same for a local folder and a Hub listing."""

from __future__ import annotations

import re
from collections.abc import Collection

PIPELINE = "model_index.json"
"""What makes a folder a diffusers pipeline: every component lies in a folder of its own."""

STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
"""What weight files are called, before `.safetensors`, `.bin` or a shard number."""

_SUFFIXES = ("safetensors", "bin")
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|ot|tflite|npz)(\.index\.json)?", re.IGNORECASE)


def any_weights(name: str) -> bool:
    """Whether a file holds weights of some kind, or their index."""
    return _WEIGHTS.fullmatch(name) is not None


def weight_names(names: Collection[str]) -> tuple[str, bool] | None:
    """The weights file or index to take among a folder's file names, and whether it is an index; None without weights."""
    present = set(names)
    for suffix in _SUFFIXES:
        for stem in STEMS:
            whole = f"{stem}.{suffix}"
            if f"{whole}.index.json" in present:
                return f"{whole}.index.json", True
            if whole in present:
                return whole, False
    variants = sorted(name for name in present if re.fullmatch(rf"({'|'.join(STEMS)})\.\w+\.safetensors", name))
    return (variants[0], False) if len(variants) == 1 else None


def base_files(names: list[str]) -> list[str]:
    """The files of a base model to fetch, small ones first: one form of the weights, and what lies beside them."""
    folders = {""} | ({name.partition("/")[0] + "/" for name in names if "/" in name} if PIPELINE in names else set[str]())
    small = [
        name
        for name in names
        if not any_weights(name) and not name.startswith(".") and (name.rpartition("/")[0] + "/").lstrip("/") in folders
    ]
    weights: list[str] = []
    for folder in sorted(folders):
        inside = [name.removeprefix(folder) for name in names if name.startswith(folder) and "/" not in name[len(folder) :]]
        chosen = weight_names(inside)
        if chosen is None:
            continue
        if not chosen[1]:
            weights.append(folder + chosen[0])
            continue
        stem, suffix = chosen[0].split(".")[:2]
        shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}")
        weights += [folder + chosen[0], *(folder + name for name in sorted(inside) if shard.fullmatch(name))]
    return [*sorted(small), *weights] if weights else []

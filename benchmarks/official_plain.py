"""The merge of the official RobustMerge procedure, rendered plainly: `python benchmarks/official_plain.py OUT.bin ADAPTER...`.

It loads whole files, stacks every tensor over the adapters, finds thresholds with `torch.kthvalue` and works in the dtype of
the files with PyTorch's own number of threads, as the released procedure does. This is the baseline for time and memory. The
last line on stdout is JSON with the seconds of its phases.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

DENSITY, GAIN, CLAMP_QUANTILE = 0.2, 2.0, 0.8


def stack_all(folders: Sequence[str]) -> dict[str, Tensor]:
    """Every tensor of all adapters, with the adapters as first axis."""
    stacks: dict[str, Tensor] = {}
    for folder in folders:
        state = torch.load(Path(folder) / "adapter_model.bin", map_location="cpu", weights_only=True)
        for key, tensor in state.items():
            stacks[key] = torch.cat((stacks[key], tensor[None])) if key in stacks else tensor[None]
    return stacks


def keep_largest(stack: Tensor) -> Tensor:
    """Zero all but the largest magnitudes of each adapter's matrix."""
    flat = stack.reshape(len(stack), -1).abs()
    threshold = flat.kthvalue(int(flat.shape[1] * (1 - DENSITY)), dim=1, keepdim=True).values
    return stack * (flat >= threshold).reshape(stack.shape)


def scales(stack: Tensor, kept: Tensor) -> Tensor:
    """How much of each rank row of A survived, floored at a quantile: (n, r)."""
    ratio = stack.abs().sum(dim=-1) / kept.abs().sum(dim=-1)
    floor = ratio.sort(dim=1).values[:, int(ratio.shape[1] * CLAMP_QUANTILE)]
    return torch.maximum(ratio, floor[:, None])


def merge(stacks: dict[str, Tensor]) -> dict[str, Tensor]:
    """One A and one B per site."""
    merged: dict[str, Tensor] = {}
    for key_a in sorted(key for key in stacks if ".lora_A." in key):
        key_b = key_a.replace(".lora_A.", ".lora_B.")
        kept_a, kept_b = keep_largest(stacks[key_a]), keep_largest(stacks[key_b])
        scale = scales(stacks[key_a], kept_a)
        merged[key_a] = (GAIN * kept_a).sum(dim=0)
        merged[key_b] = (GAIN * kept_b * scale[:, None, :]).sum(dim=0) / scale.sum(dim=0)
    return merged


def main(arguments: Sequence[str]) -> None:
    out, *folders = arguments
    start = time.perf_counter()
    stacks = stack_all(folders)
    loaded = time.perf_counter()
    result = merge(stacks)
    merged = time.perf_counter()
    torch.save(result, out)
    saved = time.perf_counter()
    print(json.dumps({"load": loaded - start, "merge": merged - loaded, "save": saved - merged, "total": saved - start}))


if __name__ == "__main__":
    main(sys.argv[1:])

"""How far a number may be from what was rounded to it."""

from __future__ import annotations

import torch

BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
LEAST = {"float64": -1021, "float32": -125, "float16": -13, "bfloat16": -125}
"""The exponent, as frexp gives it, of the least normal number."""


def half_step(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """Half the distance of neighbours around x in a floating dtype: the most that rounding to it changes.

    Shapes: any, float64 -> the same.
    """
    exponent = torch.frexp(x.abs()).exponent.masked_fill(x == 0, LEAST[dtype]).clamp_min(LEAST[dtype])
    return torch.ldexp(torch.ones_like(x), (exponent - BITS[dtype] - 1).double())


def unit(dtype: str) -> float:
    """The largest relative error of rounding to a floating dtype."""
    return 2.0 ** -BITS[dtype]


def first_beyond(error: torch.Tensor, allowed: torch.Tensor) -> tuple[int, int] | None:
    """Row and column of the first entry whose error is larger than allowed, NaN included; None when there is none."""
    bad = ~(error.abs() <= allowed)
    if not bool(bad.any()):
        return None
    index = int(bad.flatten().int().argmax())
    return index // error.shape[1], index % error.shape[1]


def worst_share(error: torch.Tensor, allowed: torch.Tensor) -> float:
    """The largest error as a share of what is allowed; an error of 0 has the share 0."""
    share = torch.where(error == 0, 0.0, error.abs() / allowed)
    return float(share.nan_to_num(float("inf")).max()) if share.numel() else 0.0

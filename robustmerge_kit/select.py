"""Exact order statistics of magnitudes: in memory, and over row tiles that are never held together."""

from __future__ import annotations

import torch
from jaxtyping import Float


def kth_magnitude(x: Float[torch.Tensor, "*batch m"], k: int) -> Float[torch.Tensor, "*batch"]:
    """The k-th smallest |x| along the last axis, counted from 1; exact, in the dtype of x.

    k is 1..m. On CPU a selection over bit patterns, which leaves the interpreter lock free; elsewhere torch.kthvalue.

    Shapes: (..., m) -> (...).
    Raises: ValueError when k is outside 1..m.
    """
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"k = {k} is outside 1..{x.shape[-1]}")
    if x.device.type != "cpu":
        return x.abs().kthvalue(k, dim=-1).values
    patterns = magnitude_pattern(x)
    # The patterns are our own copy, so the selection may reorder them in place.
    patterns.numpy().partition(k - 1, axis=-1)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return patterns[..., k - 1].clone().view(wide).to(x.dtype)


def magnitude_pattern(x: Float[torch.Tensor, "*shape"]) -> torch.Tensor:
    """The bits of |x| read as an integer, which grows with |x|: a new tensor.

    16-bit floats are widened first, without loss: 32-bit integers have the fast selection.

    Shapes: any -> the same, int64 for float64, else int32.
    """
    if x.dtype == torch.float64:
        return x.detach().contiguous().view(torch.int64) & torch.iinfo(torch.int64).max
    return x.detach().to(torch.float32).contiguous().view(torch.int32) & torch.iinfo(torch.int32).max


def ordered_pattern(x: Float[torch.Tensor, "*shape"], signed: bool) -> torch.Tensor:
    """Integers that sort like x and are equal where x is equal (0 and -0 too); `signed` False: x has no negative entry nor -0.

    Shapes: any -> the same, int64 for float64, else int32.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    integer = torch.int64 if wide == torch.float64 else torch.int32
    if not signed:
        return x.detach().to(wide).contiguous().view(integer)
    bits = (x.detach().to(wide) + 0.0).contiguous().view(integer)
    return torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits)


def from_pattern(pattern: torch.Tensor) -> torch.Tensor:
    """The float whose `ordered_pattern` this is.

    Shapes: any -> the same, float64 for int64, float32 for int32.
    """
    bits = torch.where(pattern < 0, pattern ^ torch.iinfo(pattern.dtype).max, pattern)
    return bits.view(torch.float64 if pattern.dtype == torch.int64 else torch.float32)


def rank_magnitudes(x: Float[torch.Tensor, "*batch m"]) -> torch.Tensor:
    """Place of each entry, 0 to m-1, in the ascending order of |x| along the last axis; equal magnitudes by index.

    Shapes: (..., m) -> (..., m) int64.
    """
    m = x.shape[-1]
    if x.device.type == "cpu" and x.dtype != torch.float64:
        # Pattern and index in one integer: an unstable sort of these is the stable order, and many times faster.
        packed = (magnitude_pattern(x).to(torch.int64) << 32) | torch.arange(m)
        packed.numpy().sort(axis=-1)
        order = packed & torch.iinfo(torch.int32).max
    else:
        order = x.abs().argsort(dim=-1, stable=True)
    places = torch.arange(m, device=x.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def largest_mask(x: Float[torch.Tensor, "*batch m"], k: int) -> torch.Tensor:
    """Where the k largest |x| along the last axis are; equal magnitudes by lower index.

    k 0: nowhere.

    Shapes: (..., m) -> (..., m) bool.
    """
    if k == 0:
        return torch.zeros_like(x, dtype=torch.bool)
    size = x.abs()
    least = kth_magnitude(x, x.shape[-1] - k + 1)[..., None]
    above, equal = size > least, size == least
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))

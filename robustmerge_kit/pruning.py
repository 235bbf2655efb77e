"""Pruning by magnitude: of a factor, the entries are kept that are at least as large as its k-th smallest magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from . import native


class Loss(NamedTuple):
    """Sums of magnitudes along an axis, before pruning and after it; (..., size). Ones where no axis is looked along."""

    full: torch.Tensor
    rest: torch.Tensor


class Pruning(NamedTuple):
    """What to prune, and where what is left is added.

    k: how many entries go, but for ties; 0 keeps all. scale: one factor per column, or one for all. scores: what to keep
    entries by instead of their magnitude.

    Shapes: x, out, scores (..., rows, cols), scale (..., 1, cols or 1).
    """

    x: torch.Tensor
    k: int
    out: torch.Tensor
    scale: torch.Tensor | None = None
    scores: torch.Tensor | None = None


def prune(each: Sequence[Pruning], axis: int | None = None) -> list[Loss]:
    """Add what is left of each x to its output; what each lost along `axis`. Arithmetic is in the outputs' dtype."""
    if axis in (None, -1) and all(_suits(one) for one in each):
        return _prune_natively(each, axis)
    rooms: dict[torch.Size, _Room] = {}
    for one in each:
        if one.x.shape not in rooms:
            rooms[one.x.shape] = _Room(one)
    return [rooms[one.x.shape].prune(one, axis) for one in each]


def _suits(one: Pruning) -> bool:
    return one.scores is None and one.x.ndim == 2 and one.out.dtype == torch.float32 and native.fits(one.x)


def _prune_natively(each: Sequence[Pruning], axis: int | None) -> list[Loss]:
    sums = [None if axis is None else torch.zeros(2, one.x.shape[0], dtype=torch.float64) for one in each]
    scales = [None if one.scale is None else one.scale[0].expand(one.x.shape[1]).contiguous() for one in each]
    native.prune([native.Pruning(one.x, one.k, one.out, True, *how) for one, *how in zip(each, scales, sums, strict=True)])
    if axis is None:
        return [Loss(ones, ones) for ones in (torch.ones(one.x.shape[0]) for one in each)]
    return [Loss(*found.float().unbind()) for found in sums if found is not None]


class _Room:
    """Two buffers that all factors of one shape pass through, so that they stay in the processor's caches."""

    def __init__(self, like: Pruning) -> None:
        self._values = torch.empty(like.x.shape, dtype=like.out.dtype, device=like.x.device)
        self._magnitudes = torch.empty_like(self._values)

    def prune(self, one: Pruning, axis: int | None) -> Loss:
        values = self._values.copy_(one.x)
        magnitudes = torch.abs(values, out=self._magnitudes)
        full = values.new_ones(values.shape[:-1]) if axis is None else magnitudes.sum(axis)
        if one.k == 0:
            rest = full
        else:
            if one.scores is None:
                self._keep_largest(one.k)
            else:
                values *= one.scores >= one.scores.flatten(-2).kthvalue(one.k, dim=-1).values[..., None, None]
            rest = full if axis is None else torch.abs(values, out=magnitudes).sum(axis)
        if one.scale is None:
            one.out.add_(values)
        else:
            one.out.addcmul_(values, one.scale)
        return Loss(full, rest)

    def _keep_largest(self, k: int) -> None:
        """Zero the values below the k-th smallest magnitude, in place; the magnitudes are used up."""
        if self._magnitudes.ndim > 2 or self._magnitudes.device.type != "cpu":
            threshold = self._magnitudes.flatten(-2).kthvalue(k, dim=-1).values
            self._values *= self._values.abs() >= threshold[..., None, None]
            return
        # Magnitudes sort like the integers of their bits, for which NumPy has the fastest selection.
        flat = self._magnitudes.view(-1).numpy()
        flat.view(f"i{flat.itemsize}").partition(k - 1)
        # One pass instead of a mask: hardshrink zeroes what is not greater than its bound, the float below the threshold.
        bound = np.nextafter(flat[k - 1], flat.dtype.type(0))
        torch.hardshrink(self._values, float(bound), out=self._values)

"""Pruning by magnitude: of a factor, the entries are kept that are at least as large as its k-th smallest magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from . import native


class Losses(NamedTuple):
    """Sums of magnitudes along an axis of n factors, before pruning and after it; ones where no axis is looked along.

    Shapes: (..., n, size), where a factor is shorter zero.
    """

    full: torch.Tensor
    rest: torch.Tensor


def prune(
    factors: Sequence[torch.Tensor],
    k: Sequence[int],
    outs: Sequence[torch.Tensor],
    scales: torch.Tensor | None = None,
    axis: int | None = None,
    scores: Sequence[torch.Tensor] | None = None,
) -> Losses:
    """Add what is left of each factor to its output, times its scales; what each lost along `axis`.

    k: how many entries of each go, but for ties; 0 keeps all. scales: per factor one for each column, or one for all columns.
    scores: what to keep entries by instead of their magnitude. Arithmetic is in the outputs' dtype.

    Shapes: factors, outs, scores (..., rows, cols) each; scales (..., n, cols or 1), cols those of the widest.
    """
    if axis in (None, -1) and scores is None and all(map(_suits, factors, outs)):
        return _prune_natively(factors, k, outs, scales, axis)
    rooms: dict[torch.Size, _Room] = {}
    losses: list[tuple[torch.Tensor, torch.Tensor]] = []
    for t, (x, out) in enumerate(zip(factors, outs, strict=True)):
        if x.shape not in rooms:
            rooms[x.shape] = _Room(x, out.dtype)
        losses.append(rooms[x.shape].prune(x, k[t], None if scores is None else scores[t], axis))
        if scales is None:
            out.add_(rooms[x.shape].values)
        else:
            out.addcmul_(rooms[x.shape].values, scales[..., t, None, : x.shape[-1]])
    return Losses(*(_stack_padded(parts) for parts in zip(*losses, strict=True)))


def _suits(x: torch.Tensor, out: torch.Tensor) -> bool:
    return x.ndim == 2 and out.dtype == torch.float32 and native.fits(x)


def _prune_natively(
    factors: Sequence[torch.Tensor],
    k: Sequence[int],
    outs: Sequence[torch.Tensor],
    scales: torch.Tensor | None,
    axis: int | None,
) -> Losses:
    n, rows, cols = len(factors), max(x.shape[0] for x in factors), max(x.shape[1] for x in factors)
    columns = [None] * n if scales is None else scales.expand(n, cols).contiguous().unbind()
    sums = np.zeros((2, n, rows)) if axis == -1 else None
    each = (None if sums is None else (sums[0, t], sums[1, t]) for t in range(n))
    native.prune([native.Pruning(*one) for one in zip(factors, k, outs, columns, each, strict=True)])
    if sums is None:
        ones = torch.ones(rows).where(torch.arange(rows) < torch.tensor([[x.shape[0]] for x in factors]), 0.0)
        return Losses(ones, ones)
    full, rest = torch.from_numpy(sums).float().unbind()
    return Losses(full, rest)


class _Room:
    """Two buffers that all factors of one shape pass through, so that they stay in the processor's caches."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype) -> None:
        self.values = torch.empty(like.shape, dtype=dtype, device=like.device)
        self._magnitudes = torch.empty_like(self.values)

    def prune(
        self, x: torch.Tensor, k: int, scores: torch.Tensor | None, axis: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave what stays of x in `values`; its magnitudes summed up before and after."""
        values = self.values.copy_(x)
        magnitudes = torch.abs(values, out=self._magnitudes)
        full = values.new_ones(values.shape[:-1]) if axis is None else magnitudes.sum(axis)
        if k == 0:
            return full, full
        if scores is None:
            self._keep_largest(k)
        else:
            values *= scores >= scores.flatten(-2).kthvalue(k, dim=-1).values[..., None, None]
        return full, full if axis is None else torch.abs(values, out=magnitudes).sum(axis)

    def _keep_largest(self, k: int) -> None:
        """Zero the values below the k-th smallest magnitude, in place; the magnitudes are used up."""
        if self._magnitudes.ndim > 2 or self._magnitudes.device.type != "cpu":
            threshold = self._magnitudes.flatten(-2).kthvalue(k, dim=-1).values
            self.values *= self.values.abs() >= threshold[..., None, None]
            return
        # Magnitudes sort like the integers of their bits, for which NumPy has the fastest selection.
        flat = self._magnitudes.view(-1).numpy()
        flat.view(f"i{flat.itemsize}").partition(k - 1)
        # One pass instead of a mask: hardshrink zeroes what is not greater than its bound, the float below the threshold.
        bound = np.nextafter(flat[k - 1], flat.dtype.type(0))
        torch.hardshrink(self.values, float(bound), out=self.values)


def _stack_padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    size = max(x.shape[-1] for x in parts)
    return torch.stack([torch.nn.functional.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x for x in parts], -2)

"""Pruning by magnitude: of a factor, the entries are kept that are at least as large as its k-th smallest magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import native

Array = NDArray[np.floating]


class Losses(NamedTuple):
    """Sums of magnitudes along an axis of n factors, before pruning and after it; ones where no axis is looked along.

    Small arrays in memory, wherever the factors are: what is computed of them takes no time but that of the calls.

    Shapes: (..., n, size) float64, zero where a factor is shorter.
    """

    full: Array
    rest: Array


def prune(
    factors: Sequence[torch.Tensor],
    k: Sequence[int],
    outs: Sequence[torch.Tensor],
    scales: Array | None = None,
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
    columns = None if scales is None else torch.as_tensor(scales, dtype=outs[0].dtype, device=outs[0].device)
    for t, (x, out) in enumerate(zip(factors, outs, strict=True)):
        if x.shape not in rooms:
            rooms[x.shape] = _Room(x, out.dtype)
        losses.append(rooms[x.shape].prune(x, k[t], None if scores is None else scores[t], axis))
        if columns is None:
            out.add_(rooms[x.shape].values)
        else:
            out.addcmul_(rooms[x.shape].values, columns[..., t, None, : x.shape[-1]])
    return Losses(*(_stack_padded(parts) for parts in zip(*losses, strict=True)))


def _suits(x: torch.Tensor, out: torch.Tensor) -> bool:
    return x.ndim == 2 and out.dtype == torch.float32 and native.fits(x)


def _prune_natively(
    factors: Sequence[torch.Tensor], k: Sequence[int], outs: Sequence[torch.Tensor], scales: Array | None, axis: int | None
) -> Losses:
    n, rows, cols = len(factors), max(x.shape[0] for x in factors), max(x.shape[1] for x in factors)
    columns = None if scales is None else np.ascontiguousarray(np.broadcast_to(scales, (n, cols)), dtype=np.float32)
    sums = None if axis is None else np.zeros((2, n, rows))
    native.prune(factors, k, outs, columns, sums)
    if sums is None:
        ones = np.where(np.arange(rows) < [[x.shape[0]] for x in factors], 1.0, 0.0)
        return Losses(ones, ones)
    return Losses(*sums)


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


def _stack_padded(parts: Sequence[torch.Tensor]) -> Array:
    size = max(x.shape[-1] for x in parts)
    padded = [torch.nn.functional.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x for x in parts]
    return torch.stack(padded, -2).double().cpu().numpy()

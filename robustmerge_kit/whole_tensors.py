"""Tensors of a folded model that are made of whole tensors of the inputs: heads, biases, token rows."""

from __future__ import annotations

import math

import torch

from .adapters import check_values
from .errors import PlanError
from .plan import Change, Part
from .shards import TensorRef


def made_of(change: Change, base: TensorRef | None, first: int, end: int) -> torch.Tensor:
    """Elements first to end of a changed tensor, flattened, before rounding; whole rows of it.

    base + sum of coefficient * (value - base). Where the base has no tensor of this shape, the values alone; a single value
    with coefficient 1 is taken as it is.

    Shapes: (end - first,), float32, float64 where the base is, or the stored dtype of a value that is taken.
    Raises: PlanError for values that must agree and do not; InputError for NaN or Inf.
    """
    if change.rule == "equal":
        return _agreeing(change, first, end)
    only = change.parts[0]
    if len(change.parts) == 1 and only.coefficient == 1 and only.absolute and only.rows is None:
        return _read(only.ref, first, end)
    if base is None or base.spec.shape != change.spec.shape:
        return sum((part.coefficient * _read(part.ref, first, end).float() for part in change.parts), torch.zeros(end - first))
    stored = base.read_flat(first, end)
    start = stored.to(torch.float64 if stored.dtype == torch.float64 else torch.float32)
    out = start.clone()
    for part in change.parts:
        if part.rows is not None:
            _move_rows(out, start, part, first, math.prod(change.spec.shape[1:]))
            continue
        value = _read(part.ref, first, end).to(start.dtype)
        out += part.coefficient * (value - start if part.absolute else value)
    return out


def _move_rows(out: torch.Tensor, start: torch.Tensor, part: Part, first: int, cols: int) -> None:
    """Move the listed rows that lie in a piece which begins with element `first`; all values are read from `start`."""
    begin, stop = first // cols, first // cols + len(out) // cols
    for index, row in enumerate(part.rows or ()):
        if begin <= row < stop:
            at = slice(row * cols - first, (row + 1) * cols - first)
            value = _read(part.ref, index * cols, (index + 1) * cols).to(start.dtype)
            out[at] += part.coefficient * (value - start[at])


def _agreeing(change: Change, first: int, end: int) -> torch.Tensor:
    values = _read(change.parts[0].ref, first, end)
    for part in change.parts[1:]:
        if not torch.equal(part.ref.read_flat(first, end), values):
            raise PlanError(
                f"{change.tensor} differs between {change.parts[0].ref.path} and {part.ref.path}",
                where="extras",
                hint="choose extras: mean, first, {first: NAME} or drop",
            )
    return values


def _read(ref: TensorRef, first: int, end: int) -> torch.Tensor:
    values = ref.read_flat(first, end)
    if values.is_floating_point():
        check_values(ref.where, values)
    return values

"""Whole tensors of two files, piece by piece: memory does not depend on their size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from ...flow import Flow
from ...resources import available_cores
from ...shards import TensorRef
from .directions import count_directions
from .records import Difference, Figures, Observe, Ranks, Side, Status

PIECE = 1 << 18
"""Elements of each tensor that a worker holds."""

_FLOAT64_COPIES = 4

Pair = tuple[str, TensorRef | None, TensorRef | None]
Item = TypeVar("Item")


def pair_up(a: Mapping[str, Item], b: Mapping[str, Item]) -> list[tuple[str, Item | None, Item | None]]:
    """Every name of A or B with what it stands for on either side, those of A first."""
    return [(name, a.get(name), b.get(name)) for name in {**a, **b}]


def compare_tensors(pairs: Sequence[Pair], workers: int | None, observe: Observe, ranks: bool = False) -> list[Difference]:
    """Compare tensors by name, several at a time; those with equal bytes are recognised without arithmetic.

    ranks: count the directions that separate matrices, too.

    Raises: InputError when a file cannot be read or changes meanwhile.
    """
    found: dict[str, Difference] = {}

    def store(pair: Pair, result: Difference) -> None:
        found[pair[0]] = result
        observe(pair[0], 1, sum(ref.spec.nbytes for ref in pair[1:] if ref))

    flow = Flow[Pair, None, Difference](
        cost=_cost,
        load=lambda pair: None,
        work=lambda pair, _: _compare(*pair, ranks),
        store=store,
        workers=workers or available_cores(),
        limit=1 << 62,
    )
    flow.run(pairs, enter_worker=lambda: torch.set_num_threads(1))
    return [found[name] for name, _, _ in pairs]


def _cost(pair: Pair) -> int:
    """Bytes of one piece of each side as stored and in float64; the number of workers is what bounds the whole."""
    return sum(min(ref.spec.numel, PIECE) * 8 * _FLOAT64_COPIES for ref in pair[1:] if ref)


def _compare(name: str, a: TensorRef | None, b: TensorRef | None, ranks: bool) -> Difference:
    sides = _side(a), _side(b)
    if a is None or b is None:
        return Difference(name, "only in A" if a else "only in B", *sides)
    if a.spec.shape != b.spec.shape:
        return Difference(name, "other shape", *sides)
    if a.spec.dtype == b.spec.dtype and all(_same_bytes(x, y) for x, y in _pieces(a, b)):
        return Difference(name, "equal", *sides)
    figures, not_finite = Figures(), 0
    for x, y in _pieces(a, b):
        part, bad = compare_values(x, y)
        figures, not_finite = figures + part, not_finite + bad
    status: Status = "different" if figures.difference2 or not_finite else "equal"
    directions = count_directions(a, b, PIECE) if ranks and status == "different" and not not_finite else None
    found = None if directions is None else Ranks(None, None, directions)
    return Difference(name, status, *sides, figures=figures, ranks=found, not_finite=not_finite)


def _side(ref: TensorRef | None) -> Side | None:
    return Side(ref.spec.shape, ref.spec.dtype) if ref else None


def _pieces(a: TensorRef, b: TensorRef) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, a.spec.numel, PIECE):
        stop = min(start + PIECE, a.spec.numel)
        yield a.read_flat(start, stop), b.read_flat(start, stop)


def _same_bytes(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.view(torch.uint8), y.view(torch.uint8))


def compare_values(x: torch.Tensor, y: torch.Tensor) -> tuple[Figures, int]:
    """Figures of two flat tensors, and how many positions are NaN or infinite in one of them and do not agree.

    Such positions do not enter the figures. NaN agrees with NaN, an infinity with itself.

    Shapes: x and y (k,), of any dtypes; the arithmetic is float64, of complex numbers on their two parts.
    """
    x, y = (_float64(value) for value in (x, y))
    figures = _figures(x, y)
    if math.isfinite(figures.a2 + figures.b2 + figures.difference2):
        return figures, 0
    bad = ~(x.isfinite() & y.isfinite())
    agrees = (x == y) | (x.isnan() & y.isnan())
    return _figures(x.masked_fill(bad, 0.0), y.masked_fill(bad, 0.0)), int((bad & ~agrees).sum())


def _figures(x: torch.Tensor, y: torch.Tensor) -> Figures:
    difference = y - x
    return Figures(*(float(torch.dot(p, q)) for p, q in ((x, x), (y, y), (difference, difference), (x, y))))


def _float64(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x).reshape(-1).double() if x.is_complex() else x.double()

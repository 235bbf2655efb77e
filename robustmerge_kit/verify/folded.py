"""Tensors of a folded model against the base plus what the recipe adds, number by number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..plan import Change, Part, Place
from ..shards import TensorRef
from .expected import Expected
from .precision import BITS, first_beyond, half_step, worst_share
from .records import Check
from .stack import UNIT

PIECE = 1 << 19
"""Elements of a tensor that are compared at a time where nothing is computed."""


@dataclass(frozen=True)
class Pair:
    """A tensor of the model and the base's tensor it starts from, None where the base has none."""

    found: TensorRef
    base: TensorRef | None

    @property
    def dtype(self) -> str:
        return self.found.spec.dtype


def compare_site(
    name: str, method: str, parts: Sequence[tuple[Expected, Sequence[Place]]], tensors: Mapping[str, Pair], entries: int
) -> Check:
    """The check of one site: every number of its places is the base's plus the delta's, rounded once.

    parts: the delta, or the delta of every fused expert, with its places. entries: numbers that are compared at a time.
    """
    sums = _Sums()
    by = parts[0][0].by
    for expected, places in parts:
        turned: Expected | None = None
        for place in places:
            if place.transposed:
                turned = turned or expected.transposed()
            _compare_place(sums, turned if place.transposed and turned else expected, place, tensors[place.tensor], entries)
        if expected.by != "independent":
            by = expected.by
    return sums.check(name, method, by)


@dataclass
class _Sums:
    error2: float = 0.0
    wanted2: float = 0.0
    allowed2: float = 0.0
    entries: int = 0
    worst: float = 0.0
    undecided: int = 0
    first: str | None = None

    def add(self, error: torch.Tensor, wanted: torch.Tensor, allowed: torch.Tensor) -> tuple[int, int] | None:
        """Count a tile; the first entry in it that is off."""
        self.error2 += float(error.square().sum())
        self.wanted2 += float(wanted.square().sum())
        self.allowed2 += float(allowed.square().sum())
        self.entries += error.numel()
        self.worst = max(self.worst, worst_share(error, allowed))
        return first_beyond(error, allowed)

    def check(self, name: str, method: str | None, by: str) -> Check:
        norm = math.sqrt(self.wanted2)
        error, allowed = math.sqrt(self.error2), math.sqrt(self.allowed2)
        share, bound = (error / norm, allowed / norm) if norm else (float(error > 0), 0.0)
        return Check(name, method, by, self.entries, share, bound, self.worst, self.undecided, self.first)  # pyright: ignore


def _compare_place(sums: _Sums, expected: Expected, place: Place, pair: Pair, entries: int) -> None:
    assert pair.base is not None
    size = max(1, entries // place.cols)
    for first in range(0, place.rows, size):
        count = min(size, place.rows - first)
        start = place.first + first * place.cols
        stop = start + count * place.cols
        delta, noise, undecided = expected.rows(place.row + first, place.row + first + count)
        weight = pair.base.read_flat(start, stop).double().view(count, place.cols)
        found = pair.found.read_flat(start, stop).double().view(count, place.cols)
        wanted = weight + delta
        own = UNIT if pair.dtype != "float64" and pair.base.spec.dtype != "float64" else UNIT**2
        # The sum is taken in float32: one rounding of it, and of what is added to it piece by piece.
        noise = noise + 8 * own * (weight.abs() + delta.abs())
        allowed = noise + half_step(torch.maximum(wanted.abs(), found.abs()), pair.dtype)
        sums.undecided += undecided
        bad = sums.add(found - wanted, wanted, allowed)
        if bad is not None and sums.first is None:
            row, col = bad
            at = _index(start + row * place.cols + col, pair.found.spec.shape)
            sums.first = f"{place.tensor} differs first at {at}: {found[bad]:.6g}, expected {wanted[bad]:.6g}"


def _index(flat: int, shape: Sequence[int]) -> list[int]:
    index: list[int] = []
    for size in reversed(shape):
        flat, place = divmod(flat, size)
        index.insert(0, place)
    return index


# --- tensors without a site ---------------------------------------------------------------------------------------------


def compare_copy(name: str, pair: Pair, ranges: Sequence[tuple[int, int]]) -> Check:
    """Elements that are the base's own: byte for byte, or cast where the dtype changes."""
    assert pair.base is not None
    problem: str | None = None
    count = 0
    for start, stop in ((i, min(i + PIECE, end)) for first, end in ranges for i in range(first, end, PIECE)):
        wanted = pair.base.read_flat(start, stop)
        if pair.base.spec.dtype != pair.dtype:
            wanted = wanted.to(getattr(torch, pair.dtype))
        different = wanted.view(torch.uint8) != pair.found.read_flat(start, stop).view(torch.uint8)
        count += stop - start
        if bool(different.any()):
            flat = start + int(different.int().argmax()) * (stop - start) // len(different)
            problem = f"differs from the base first at {_index(flat, pair.found.spec.shape)}"
            break
    return Check(name, None, "bytes", count, float(problem is not None), 0.0, 0.0, 0, problem)


def compare_change(change: Change, pair: Pair) -> Check:
    """A tensor made of whole tensors of the inputs: base + sum of coefficient * (value - base), or the value itself."""
    exact = change.rule == "equal" or _is_value(change, pair)
    sums = _Sums()
    cols = math.prod(change.spec.shape[1:])
    for first, end in _whole_rows(change.spec.numel, cols):
        found = pair.found.read_flat(first, end)
        if exact:
            wanted = change.parts[0].ref.read_flat(first, end)
            if wanted.dtype != found.dtype:
                wanted = wanted.to(found.dtype)
            same = wanted.view(torch.uint8) == found.view(torch.uint8)
            noise = torch.zeros(1, end - first, dtype=torch.float64)
            values = wanted.double()[None]
            error = torch.where(same.view(end - first, -1).all(1), 0.0, 1.0).double()[None]
        else:
            values, noise = _combined(change, pair, first, end, cols)
            error = found.double()[None] - values
            if pair.dtype in BITS:
                noise = noise + half_step(torch.maximum(values.abs(), found.double().abs()[None]), pair.dtype)
        bad = sums.add(error, values, noise)
        if bad is not None and sums.first is None:
            sums.first = (
                f"differs first at {_index(first + bad[1], change.spec.shape)}: "
                f"{float(found[bad[1]]):.6g}, expected {float(values[bad]):.6g}"
            )
    return sums.check(change.tensor, None, "bytes" if exact else "independent")


def _is_value(change: Change, pair: Pair) -> bool:
    (part, *others) = change.parts
    return not others and part.coefficient == 1 and part.absolute and part.rows is None


def _whole_rows(numel: int, cols: int) -> Iterator[tuple[int, int]]:
    size = max(1, PIECE // max(1, cols)) * max(1, cols)
    for first in range(0, numel, size):
        yield first, min(first + size, numel)


def _combined(change: Change, pair: Pair, first: int, end: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected values and how far float32 may be from them, (1, end - first)."""
    based = pair.base is not None and pair.base.spec.shape == change.spec.shape
    start = pair.base.read_flat(first, end).double() if based and pair.base else torch.zeros(end - first).double()
    out, size = start.clone(), start.abs()
    for part in change.parts:
        if part.rows is None:
            value = part.ref.read_flat(first, end).double()
            out += part.coefficient * (value - start if part.absolute and based else value)
            size = size + abs(part.coefficient) * (value.abs() + start.abs())
        else:
            _add_rows(part, start, out, size, first, cols)
    return out[None], (size * 8 * UNIT)[None]


def _add_rows(part: Part, start: torch.Tensor, out: torch.Tensor, size: torch.Tensor, first: int, cols: int) -> None:
    """Rows of token embeddings, each for the row of the base that it names."""
    for own, row in enumerate(part.rows or ()):
        at = slice(row * cols - first, (row + 1) * cols - first)
        if 0 <= at.start < len(start):
            value = part.ref.read_flat(own * cols, (own + 1) * cols).double()
            out[at] += part.coefficient * (value - start[at])
            size[at] += abs(part.coefficient) * (value.abs() + start[at].abs())

"""Exact numbers over all entries of an object that is only ever seen in blocks of rows; implements `method.Whole`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from . import native
from .method import Draws, Of, Order
from .select import from_pattern, ordered_pattern

DIGIT = 16
"""Bits that one pass over the blocks resolves: two passes for float32, four for float64."""

_BINS = 1 << DIGIT


@dataclass(frozen=True)
class Block:
    """Some rows x (..., n, rows, cols) of an object; `adapters` are the places of its n adapters in the whole survey.

    valid: of an object that is one block, the leading rows of each adapter that count; the others are padding.
    """

    x: torch.Tensor
    draws: Draws
    adapters: tuple[int, ...]
    valid: tuple[int, ...] | None = None

    @property
    def first_entry(self) -> int:
        return self.draws.first_entry(self.x.shape[-1])

    def lanes(self, of: Of) -> list[tuple[int, torch.Tensor]]:
        """The values that count, lane by lane: the lane's place in the survey, and (..., entries)."""
        lanes = of(self.x, self.draws).flatten(-2).unbind(-2)
        if len(lanes) != len(self.adapters):
            return list(enumerate(lanes))
        if self.valid is not None:
            cols = self.x.shape[-1]
            lanes = tuple(lane[..., : rows * cols] for lane, rows in zip(lanes, self.valid, strict=True))
        return list(zip(self.adapters, lanes, strict=True))


@dataclass(frozen=True)
class InMemory:
    """An object that is one block."""

    block: Block

    @property
    def numel(self) -> tuple[int, ...]:
        *_, n, rows, cols = self.block.x.shape
        return tuple(r * cols for r in self.block.valid or (rows,) * n)

    def order(self, of: Of, *positions: Sequence[int] | torch.Tensor, signed: bool = False) -> tuple[Order, ...]:
        lanes = [ordered_pattern(lane, signed) for _, lane in self.block.lanes(of)]
        shape = (*lanes[0].shape[:-1], len(lanes))
        orders: list[Order] = []
        for asked in positions:
            position = _expand(asked, shape, lanes[0].device)
            each = [_select(lane, at) for lane, at in zip(lanes, position.unbind(-1), strict=True)]
            value, below, equal = (torch.stack(parts, -1) for parts in zip(*each, strict=True))
            orders.append(Order(from_pattern(value), below, equal))
        return tuple(orders)

    def locate(self, of: Of, value: torch.Tensor, nth: torch.Tensor) -> torch.Tensor:
        return Streamed(lambda: (self.block,), self.numel).locate(of, value, nth)

    def total(self, of: Of) -> torch.Tensor:
        return torch.stack([lane.sum(-1, dtype=torch.float64) for _, lane in self.block.lanes(of)], -1)


@dataclass(frozen=True)
class Streamed:
    """An object, or many sites one after the other, that is generated block by block for every pass."""

    blocks: Callable[[], Iterable[Block]]
    numel: tuple[int, ...]

    def order(self, of: Of, *positions: Sequence[int] | torch.Tensor, signed: bool = False) -> tuple[Order, ...]:
        counts, integer = self._count(of, signed, 0, None)
        shape, levels = counts.shape[:-1], torch.iinfo(integer).bits // DIGIT
        searches = [_Search.start(_expand(asked, shape, counts.device), counts) for asked in positions]
        for level in range(1, levels):
            searches = [search.narrow(self._count(of, signed, level, search.prefix)[0]) for search in searches]
        return tuple(search.result(integer) for search in searches)

    def _count(self, of: Of, signed: bool, level: int, prefix: torch.Tensor | None) -> tuple[torch.Tensor, torch.dtype]:
        """How often each 16-bit digit occurs among the entries whose higher digits are `prefix`, (..., m, 65536)."""
        counts = torch.empty(0)
        integer = torch.int32
        for block in self.blocks():
            lanes = block.lanes(of)
            for place, lane in lanes:
                if not counts.numel():
                    integer = torch.int64 if lane.dtype == torch.float64 else torch.int32
                    counts = torch.zeros(
                        (*lane.shape[:-1], self._width(block, lanes), _BINS), dtype=torch.int64, device=lane.device
                    )
                for at in _indices(lane.shape[:-1]):
                    _add_counts(
                        counts[*at, place], lane[at], signed, level, None if prefix is None else int(prefix[*at, place])
                    )
        return counts, integer

    def _width(self, block: Block, lanes: Sequence[tuple[int, torch.Tensor]]) -> int:
        return len(self.numel) if len(lanes) == len(block.adapters) else len(lanes)

    def locate(self, of: Of, value: torch.Tensor, nth: torch.Tensor) -> torch.Tensor:
        found = torch.full_like(nth, -1)
        remaining = {at: int(nth[at]) for at in _indices(nth.shape) if nth[at] >= 0}
        for block in self.blocks():
            if not remaining:
                break
            for place, lane in block.lanes(of):
                for batch in _indices(lane.shape[:-1]):
                    at = (*batch, place)
                    if at not in remaining:
                        continue
                    equal = lane[batch] == value[at]
                    count = int(torch.count_nonzero(equal))
                    if remaining[at] < count:
                        found[at] = equal.nonzero()[remaining.pop(at), 0] + block.first_entry
                    else:
                        remaining[at] -= count
        return found

    def total(self, of: Of) -> torch.Tensor:
        sums = torch.empty(0)
        for block in self.blocks():
            lanes = block.lanes(of)
            for place, lane in lanes:
                if not sums.numel():
                    sums = torch.zeros((*lane.shape[:-1], self._width(block, lanes)), dtype=torch.float64, device=lane.device)
                sums[..., place] += lane.sum(-1, dtype=torch.float64)
        return sums


@dataclass(frozen=True)
class _Search:
    """Radix search for one position per lane: the digits found so far, and the position among entries that share them."""

    position: torch.Tensor
    prefix: torch.Tensor
    rank: torch.Tensor
    equal: torch.Tensor

    @classmethod
    def start(cls, position: torch.Tensor, counts: torch.Tensor) -> _Search:
        begun = cls(position, torch.zeros_like(position), position, torch.zeros_like(position)).narrow(counts)
        # The first digit carries the sign.
        return cls(position, begun.prefix - _BINS // 2, begun.rank, begun.equal)

    def narrow(self, counts: torch.Tensor) -> _Search:
        reached = counts.cumsum(-1)
        digit = torch.searchsorted(reached, self.rank[..., None].contiguous(), right=True)
        equal = counts.gather(-1, digit)
        rank = self.rank - (reached.gather(-1, digit) - equal)[..., 0]
        return _Search(self.position, (self.prefix << DIGIT) | digit[..., 0], rank, equal[..., 0])

    def result(self, integer: torch.dtype) -> Order:
        return Order(from_pattern(self.prefix.to(integer)), self.position - self.rank, self.equal)


def _add_counts(counts: torch.Tensor, values: torch.Tensor, signed: bool, level: int, prefix: int | None) -> None:
    """Count the 16-bit digits at `level` of the patterns that begin with `prefix`."""
    if values.dtype == torch.float32 and native.fits(values):
        native.count(values, signed, level, prefix or 0, counts)
        return
    digits = _digits(ordered_pattern(values, signed), level, prefix)
    if digits.numel() < _BINS // 4:
        counts.scatter_add_(0, digits.long(), torch.ones_like(digits, dtype=torch.int64))
        return
    # Magnitudes of one block span few of the bins.
    low = int(digits.min())
    part = torch.bincount(digits - low)
    counts[low : low + len(part)] += part


def _digits(pattern: torch.Tensor, level: int, prefix: int | None) -> torch.Tensor:
    """The 16-bit digit at `level` of the patterns that begin with `prefix`."""
    shift = torch.iinfo(pattern.dtype).bits - DIGIT * (level + 1)
    if prefix is None:
        return (pattern >> shift) + _BINS // 2
    low = prefix << (shift + DIGIT)
    high = low + (1 << (shift + DIGIT)) - 1
    if pattern.device.type == "cpu":
        # Several times faster than torch's own boolean indexing.
        array = pattern.numpy()
        pattern = torch.from_numpy(array[(array >= low) & (array <= high)])
    else:
        pattern = pattern[(pattern >= low) & (pattern <= high)]
    return (pattern >> shift) & (_BINS - 1)


def _select(pattern: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pattern at a position of the ascending order along the last axis, how many are smaller, how many equal."""
    value = torch.empty_like(pattern[..., 0])
    for at in _indices(value.shape):
        if pattern.device.type == "cpu":
            chosen = pattern[at].clone()
            chosen.numpy().partition(int(position[at]))
            value[at] = chosen[position[at]]
        else:
            value[at] = pattern[at].kthvalue(int(position[at]) + 1).values
    below, equal = (torch.count_nonzero(compare(pattern, value[..., None]), dim=-1) for compare in (torch.lt, torch.eq))
    return value, below, equal


def _expand(position: Sequence[int] | torch.Tensor, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.as_tensor(position, dtype=torch.int64, device=device).expand(tuple(shape))


def _indices(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All index tuples of a shape; one empty tuple where there are no axes."""
    yield from ((),) if not shape else ((i, *rest) for i in range(shape[0]) for rest in _indices(shape[1:]))

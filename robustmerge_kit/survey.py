"""Exact numbers over all entries of an object that is only ever seen in blocks of rows; implements `method.Whole`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .method import Draws, Of, Order, Whole
from .select import from_pattern, ordered_pattern

DIGIT = 16
"""Bits that one pass over the blocks resolves: two passes for float32, four for float64."""


@dataclass(frozen=True)
class Block:
    """Some rows x (..., n, rows, cols) of an object; `adapters` are the places of its n adapters in the whole survey."""

    x: Tensor
    draws: Draws
    adapters: tuple[int, ...]


@dataclass(frozen=True)
class InMemory(Whole):
    """An object that is one block."""

    block: Block

    @property
    def numel(self) -> tuple[int, ...]:
        return (self.block.x.shape[-2:].numel(),) * len(self.block.adapters)

    def _values(self, of: Of) -> Tensor:
        return of(self.block.x, self.block.draws).flatten(-2)

    def order(self, of: Of, *positions: Sequence[int] | Tensor, signed: bool = False) -> tuple[Order, ...]:
        patterns = ordered_pattern(self._values(of), signed)
        return tuple(_order_in(patterns, _lanes(position, patterns[..., 0])) for position in positions)

    def locate(self, of: Of, value: Tensor, nth: Tensor) -> Tensor:
        equal = self._values(of) == value[..., None]
        seen = equal.cumsum(-1)
        found = (equal & (seen == nth[..., None] + 1)).to(torch.int8).argmax(-1)
        return torch.where(nth < 0, -1, found + self.block.draws.first_entry(self.block.x.shape[-1]))

    def total(self, of: Of) -> Tensor:
        return self._values(of).sum(-1, dtype=torch.float64)


@dataclass(frozen=True)
class Streamed(Whole):
    """An object, or many sites one after the other, that is generated block by block for every pass."""

    blocks: Callable[[], Iterable[Block]]
    numel: tuple[int, ...]  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    def order(self, of: Of, *positions: Sequence[int] | Tensor, signed: bool = False) -> tuple[Order, ...]:
        counts, bits = self._count(of, signed, 0, None)
        searches = [_Search.start(_lanes(position, counts[..., 0]), counts) for position in positions]
        for level in range(1, bits // DIGIT):
            searches = [s.narrow(self._count(of, signed, level, s.prefix)[0]) for s in searches]
        return tuple(s.result(torch.int64 if bits == 64 else torch.int32) for s in searches)

    def _count(self, of: Of, signed: bool, level: int, prefix: Tensor | None) -> tuple[Tensor, int]:
        """How often each 16-bit digit occurs among the entries whose higher digits are `prefix`, (..., m, 65536)."""
        counts, bits = None, 0
        for block in self.blocks():
            patterns = ordered_pattern(of(block.x, block.draws), signed).flatten(-2)
            bits = torch.iinfo(patterns.dtype).bits
            if counts is None:
                lanes = self._lanes(patterns.shape[-2], block)
                counts = torch.zeros((*patterns.shape[:-2], lanes, 1 << DIGIT), dtype=torch.int64, device=patterns.device)
            flat, places = patterns.flatten(0, -2), _places(patterns, block, counts.shape[-2])
            flat_counts, flat_prefix = counts.flatten(0, -2), None if prefix is None else prefix.flatten().tolist()
            for row, place in zip(flat, places, strict=True):
                digits = _digits(row, bits, level, None if flat_prefix is None else flat_prefix[place])
                flat_counts[place] += torch.bincount(digits, minlength=1 << DIGIT)
        if counts is None:
            raise ValueError("there is no block to survey")
        return counts, bits

    def _lanes(self, m: int, block: Block) -> int:
        return len(self.numel) if m == len(block.adapters) else m

    def locate(self, of: Of, value: Tensor, nth: Tensor) -> Tensor:
        found = torch.full_like(nth, -1)
        left, flat_found, flat_value = nth.flatten().tolist(), found.flatten(), value.flatten()
        for block in self.blocks():
            if all(n < 0 for n in left):
                break
            values = of(block.x, block.draws).flatten(-2)
            first = block.draws.first_entry(block.x.shape[-1])
            for row, place in zip(values.flatten(0, -2), _places(values, block, nth.shape[-1]), strict=True):
                if left[place] < 0:
                    continue
                equal = row == flat_value[place]
                count = int(torch.count_nonzero(equal))
                if left[place] < count:
                    flat_found[place] = equal.nonzero()[left[place], 0] + first
                left[place] -= count
        return found

    def total(self, of: Of) -> Tensor:
        sums = None
        for block in self.blocks():
            part = of(block.x, block.draws).sum((-2, -1), dtype=torch.float64)
            if sums is None:
                sums = torch.zeros((*part.shape[:-1], self._lanes(part.shape[-1], block)), dtype=part.dtype, device=part.device)
            columns = block.adapters if part.shape[-1] == len(block.adapters) else range(part.shape[-1])
            for column, lane in zip(part.unbind(-1), columns, strict=True):
                sums[..., lane] += column
        if sums is None:
            raise ValueError("there is no block to survey")
        return sums


@dataclass(frozen=True)
class _Search:
    """Radix search for one position per lane: the digits found so far, and the position among entries that share them."""

    position: Tensor
    prefix: Tensor
    rank: Tensor
    equal: Tensor

    @classmethod
    def start(cls, position: Tensor, counts: Tensor) -> _Search:
        begun = cls(position, torch.zeros_like(position), position, torch.zeros_like(position)).narrow(counts)
        # The first digit carries the sign.
        return cls(position, begun.prefix - (1 << (DIGIT - 1)), begun.rank, begun.equal)

    def narrow(self, counts: Tensor) -> _Search:
        reached = counts.cumsum(-1)
        digit = torch.searchsorted(reached, self.rank[..., None].contiguous(), right=True)
        equal = counts.gather(-1, digit)
        rank = self.rank - (reached.gather(-1, digit) - equal)[..., 0]
        return _Search(self.position, (self.prefix << DIGIT) | digit[..., 0], rank, equal[..., 0])

    def result(self, integer: torch.dtype) -> Order:
        return Order(from_pattern(self.prefix.to(integer)), self.position - self.rank, self.equal)


def _places(values: Tensor, block: Block, lanes: int) -> list[int]:
    """Where the lanes of a block, batch axes flattened, are kept among all lanes."""
    m = values.shape[-2]
    each = block.adapters if m == len(block.adapters) else tuple(range(m))
    return [batch * lanes + lane for batch in range(values.shape[:-2].numel()) for lane in each]


def _digits(pattern: Tensor, bits: int, level: int, prefix: int | None) -> Tensor:
    shift = bits - DIGIT * (level + 1)
    if prefix is None:
        return (pattern >> shift) + (1 << (DIGIT - 1))
    low = prefix << (shift + DIGIT)
    high = low + (1 << (shift + DIGIT)) - 1
    if pattern.device.type == "cpu":
        # Several times faster than torch's own boolean indexing.
        array = pattern.numpy()
        pattern = torch.from_numpy(array[(array >= low) & (array <= high)])
    else:
        pattern = pattern[(pattern >= low) & (pattern <= high)]
    return (pattern >> shift) & ((1 << DIGIT) - 1)


def _lanes(position: Sequence[int] | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(position, dtype=torch.int64, device=like.device).expand(like.shape)


def _order_in(patterns: Tensor, position: Tensor) -> Order:
    """Order statistics along the last axis of (..., m, N), at one position (..., m) per lane."""
    lanes = patterns.flatten(0, -2)
    keys = torch.empty_like(lanes[:, 0])
    for i, at in enumerate(position.flatten().tolist()):
        if lanes.device.type == "cpu":
            chosen = lanes[i].clone()
            chosen.numpy().partition(at)
            keys[i] = chosen[at]
        else:
            keys[i] = lanes[i].kthvalue(at + 1).values
    key = keys.reshape(position.shape)
    below, equal = (torch.count_nonzero(compare(patterns, key[..., None]), dim=-1) for compare in (torch.lt, torch.eq))
    return Order(from_pattern(key), below, equal)

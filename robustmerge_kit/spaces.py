"""Where an element-wise method runs: what it sees of the deltas at a site, and how its result becomes a delta again.

    full     the weighted deltas D_t themselves, in blocks of rows            -> dense
    core     M_t in the singular bases of the joined factors or deltas        -> in the core, rank at most R
    knots    X_t with [D_1 | .. | D_n] = U [X_1 | .. | X_n], U orthonormal    -> U X, rank at most min(R, d_out)
    ctm      O_t = U^T D_t V in a common basis of rank k                      -> U X V^T, rank k
    factor   the A stack and the B stack, each for itself; |c_t| is split     -> B A, rank max r_t, with cross terms

Results in different spaces are different operators. All but `factor`, and `core` with `basis: factors`, depend on the deltas
only and not on how each is split into B and A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from .bases import CoreOptions, CtmOptions, common_basis, joint, singular_basis
from .draws import KeyedDraws
from .factors import Core, FactorStack, InCore, LowRank, Weights, pad
from .factors import core as core_of
from .method import Elementwise, Stats
from .survey import Block, InMemory, Streamed

BLOCK_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Entries of all adapters in one block of rows: what stays near the cores' caches, and what fills a GPU."""


class NoOptions(BaseModel):
    """Options of a space that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


OPTIONS: Mapping[str, type[BaseModel]] = {
    "full": NoOptions,
    "core": CoreOptions,
    "knots": NoOptions,
    "ctm": CtmOptions,
    "factor": NoOptions,
}
"""The options of every space, by name."""


def rank(space: str, options: BaseModel, ranks: Sequence[int]) -> int:
    """Upper bound of the rank of a result, from the ranks of the adapters; for `full` the rank that `auto` keeps."""
    if isinstance(options, CtmOptions):
        return min(options.rank or max(ranks), sum(ranks))
    return max(ranks) if space == "factor" else sum(ranks)


@dataclass(frozen=True)
class Dense:
    """A merged delta that is made when its rows are asked for.

    Shapes: (d_out, d_in), or with leading batch axes.
    """

    shape: torch.Size
    _block_rows: int
    _make: Callable[[int, int], torch.Tensor]

    def rows(self, start: int, stop: int) -> Float[torch.Tensor, "*batch rows d_in"]:
        """Rows start to stop; the same numbers however the rows are asked for."""
        size = self._block_rows
        parts: list[torch.Tensor] = []
        for first in range(start - start % size, stop, size):
            block = self._make(first, min(first + size, self.shape[-2]))
            parts.append(block[..., max(0, start - first) : stop - first, :])
        return parts[0] if len(parts) == 1 else torch.cat(parts, -2)

    def blocks(self) -> Iterator[tuple[int, Float[torch.Tensor, "*batch rows d_in"]]]:
        """All rows, block by block, each with the row it begins at."""
        for first in range(0, self.shape[-2], self._block_rows):
            yield first, self._make(first, min(first + self._block_rows, self.shape[-2]))

    def full(self) -> Float[torch.Tensor, "*batch d_out d_in"]:
        """All rows at once."""
        return self.rows(0, self.shape[-2])


Merged = LowRank | InCore | Dense


@dataclass(frozen=True)
class Object:
    """What a method sees of n adapters: make(start, stop) gives rows of (..., n, rows, cols).

    held: all rows are in memory. site: which site of the batch it is, None for all of them. valid: rows of each adapter that
    are its own; the others are zero padding, which no survey counts.
    """

    shape: torch.Size
    block_rows: int
    make: Callable[[int, int], torch.Tensor]
    part: str = ""
    held: bool = False
    site: int | None = None
    valid: tuple[int, ...] | None = None

    @classmethod
    def of(cls, x: Float[torch.Tensor, "*batch n rows cols"], part: str = "", valid: tuple[int, ...] | None = None) -> Object:
        """An object that is in memory as a whole."""
        return cls(x.shape, block_rows(x.shape, x.device), lambda start, stop: x[..., start:stop, :], part, True, None, valid)

    @property
    def numel(self) -> tuple[int, ...]:
        rows, cols = self.shape[-2:]
        return tuple(cols * r for r in self.valid or (rows,) * self.shape[-3])

    def blocks(self, draws: KeyedDraws) -> Iterator[Block]:
        """The object block by block for a survey; in one block if it is in memory."""
        places = tuple(range(self.shape[-3])) if draws.places is None else draws.places
        size = self.shape[-2] if self.held else self.block_rows
        for first in range(0, self.shape[-2], size):
            x = self.make(first, min(first + size, self.shape[-2]))
            yield Block(x, draws.for_part(self.part).at_row(first), places, self.valid)


@dataclass(frozen=True)
class Represented:
    """A site in a space: the objects a method treats one by one, and how their merged forms become a delta."""

    objects: tuple[Object, ...]
    lift: Callable[[Sequence[Dense]], Merged]


def represent(space: str, options: BaseModel, stack: FactorStack, core: Core | None = None) -> Represented:
    """The stack in a space; `core` is the stack's core where the caller has it already.

    In core and knots the size of what a method sees depends on the numbers, so the sites of a batch are objects of their own.

    Shapes: stack of n adapters, with batch axes or without.
    """
    if space == "full":
        return _full(stack)
    if space == "factor":
        return _factor(stack)
    core = core or core_of(stack)
    if isinstance(options, CtmOptions):
        return _ctm(core, options)
    if not stack.batch:
        return _one(core, stack, options)
    each = [_one(site, part, options) for site, part in zip(core.sites(), _sites(stack), strict=True)]
    return _batch(each, core, stack.batch)


def merge(
    method: Elementwise,
    site: Represented,
    weights: Weights,
    params: Any,
    draws: KeyedDraws,
    surveyed: Surveyed | None = None,
) -> Merged:
    """Merge one site in its space; `surveyed` holds the numbers of a survey of all sites (`scope: global`).

    Shapes: objects (..., n, rows, cols) -> a merged delta.
    """
    results: list[Dense] = []
    if method.whole:
        site = replace(site, objects=tuple(replace(thing, block_rows=thing.shape[-2]) for thing in site.objects))
    for i, thing in enumerate(site.objects):
        own = draws if thing.site is None else draws.each()[thing.site]
        if surveyed is None:
            stats = method.survey(_whole(thing, own), params)
        else:
            own = surveyed.draws(draws, i)
            stats = own.own(surveyed.stats[i])
        results.append(_lazily(thing, method, weights, params, own.for_part(thing.part), stats))
    return site.lift(results)


def combine(site: Represented, coefficients: Float[torch.Tensor, "*batch n"]) -> Merged:
    """The sum of the objects with one coefficient each: a coefficient method in a space.

    Shapes: coefficients (..., n) -> a merged delta.
    """

    def summed(thing: Object) -> Dense:
        own = coefficients if thing.site is None else coefficients.flatten(0, -2)[thing.site]

        def make(start: int, stop: int) -> torch.Tensor:
            x = thing.make(start, stop)
            return (x * own.to(x)[..., None, None]).sum(-3)

        return Dense(_merged_shape(thing), thing.block_rows, make)

    return site.lift([summed(thing) for thing in site.objects])


@dataclass(frozen=True)
class Surveyed:
    """What a survey of all sites found out: stats of every object, and where each site's entries begin among all."""

    stats: tuple[Stats, ...]
    origins: Mapping[str, tuple[int, ...]]
    places: Mapping[str, tuple[int, ...]]

    def draws(self, draws: KeyedDraws, thing: int) -> KeyedDraws:
        """Draws that know where an object of their site lies."""
        (site,) = draws.sites
        return draws.among(self.origins[site][thing], self.places[site])


def survey_all(
    method: Elementwise,
    sites: Callable[[], Iterable[tuple[Represented, KeyedDraws, Sequence[int]]]],
    adapters: int,
    params: Any,
) -> Surveyed:
    """Survey all sites together, for `scope: global`: exact, and holding one site at a time.

    sites: gives, afresh for every pass and in the same order (sorted names), each site in its space, its draws, and which of
    the adapters are in its stack. params: those of all `adapters`.
    """
    origins: dict[str, tuple[int, ...]] = {}
    places: dict[str, tuple[int, ...]] = {}
    totals: list[list[int]] = []
    entries: list[int] = []
    for site, draws, present in sites():
        totals = totals or [[0] * adapters for _ in site.objects]
        entries = entries or [0] * len(site.objects)
        (name,) = draws.sites
        origins[name], places[name] = tuple(entries), tuple(present)
        for i, thing in enumerate(site.objects):
            entries[i] += thing.shape[-2:].numel()
            for place, numel in zip(present, thing.numel, strict=True):
                totals[i][place] += numel
    known = Surveyed((), origins, places)

    def blocks(i: int) -> Iterator[Block]:
        for site, draws, _ in sites():
            yield from site.objects[i].blocks(known.draws(draws, i))

    stats = [method.survey(Streamed(lambda i=i: blocks(i), tuple(numel)), params) for i, numel in enumerate(totals)]
    return replace(known, stats=tuple(stats))


def _whole(thing: Object, draws: KeyedDraws) -> InMemory | Streamed:
    if thing.held or thing.block_rows >= thing.shape[-2]:
        return InMemory(next(thing.blocks(draws)))
    return Streamed(lambda: thing.blocks(draws), thing.numel)


def _merged_shape(thing: Object) -> torch.Size:
    return torch.Size((*thing.shape[:-3], *thing.shape[-2:]))


def _lazily(thing: Object, method: Elementwise, weights: Weights, params: Any, draws: KeyedDraws, stats: Stats) -> Dense:
    def make(start: int, stop: int) -> torch.Tensor:
        return method.merge(thing.make(start, stop), weights, params, draws.at_row(start), stats)

    return Dense(_merged_shape(thing), thing.block_rows, make)


def _full(stack: FactorStack) -> Represented:
    a = [stack.folded_a(t) for t in range(len(stack))]
    b = [stack.folded_b(t) for t in range(len(stack))]
    shape = torch.Size((*stack.batch, len(stack), stack.d_out, stack.d_in))

    def make(start: int, stop: int) -> torch.Tensor:
        x = a[0].new_empty((*stack.batch, len(stack), stop - start, stack.d_in))
        for t in range(len(stack)):
            torch.matmul(b[t][..., start:stop, :], a[t], out=x[..., t, :, :])
        return x

    return Represented((Object(shape, block_rows(shape, a[0].device), make),), lambda merged: merged[0])


def block_rows(shape: torch.Size, device: torch.device) -> int:
    """Rows of a block: all of them, or a power of two. Fixed by shape and kind of device, so that results are too."""
    entries = BLOCK_ENTRIES.get(device.type, BLOCK_ENTRIES["cpu"])
    rows, per_row = shape[-2], max(1, shape.numel() // shape[-2])
    if rows * per_row <= entries:
        return rows
    return 1 << max(3, (entries // per_row).bit_length() - 1)


def _core(core: Core, options: CoreOptions) -> Represented:
    u, v = singular_basis(core, options)
    return Represented((Object.of(core.seen_from(u, v)),), lambda merged: InCore(core, u @ merged[0].full() @ v.mT))


def _ctm(core: Core, options: CtmOptions) -> Represented:
    u, v = common_basis(core, options)
    return Represented((Object.of(core.seen_from(u, v)),), lambda merged: InCore(core, u @ merged[0].full() @ v.mT))


def _knots(core: Core, stack: FactorStack) -> Represented:
    u, _ = joint(core.pairs, core.eps)
    x = stack.a[0].new_empty((len(stack), u.shape[-1], stack.d_in), dtype=stack.dtype)
    for t, (left, _) in enumerate(core.pairs):
        torch.matmul((u.mT @ left).to(stack.dtype), stack.folded_a(t), out=x[t])
    basis = core.q_b @ u
    return Represented((Object.of(x),), lambda merged: LowRank(basis, merged[0].full()))


def _one(core: Core, stack: FactorStack, options: BaseModel) -> Represented:
    return _core(core, options) if isinstance(options, CoreOptions) else _knots(core, stack)


def _sites(stack: FactorStack) -> Iterator[FactorStack]:
    """The stacks of a batch one by one."""
    a, b = ([x.flatten(0, -3) for x in factors] for factors in (stack.a, stack.b))
    each = [c.expand(stack.batch).flatten() if isinstance(c, torch.Tensor) else c for c in stack.coefficients]
    for i in range(stack.batch.numel()):
        c = tuple(float(value[i]) if isinstance(value, torch.Tensor) else value for value in each)
        yield FactorStack(tuple(x[i] for x in a), tuple(x[i] for x in b), c, stack.weights)


def _batch(sites: Sequence[Represented], core: Core, batch: torch.Size) -> Represented:
    """Sites with one object each as one: their objects side by side, their results stacked."""

    def lift(merged: Sequence[Dense]) -> Merged:
        deltas = [site.lift([part]) for site, part in zip(sites, merged, strict=True)]
        matrices = [delta.matrix for delta in deltas if isinstance(delta, InCore)]
        if matrices:
            return InCore(core, torch.stack(matrices).reshape(*batch, *matrices[0].shape))
        low = [delta for delta in deltas if isinstance(delta, LowRank)]
        padded = [pad(delta, max(each.rank for each in low)) for delta in low]
        b, a = torch.stack([delta.b for delta in padded]), torch.stack([delta.a for delta in padded])
        return LowRank(b.reshape(*batch, *b.shape[1:]), a.reshape(*batch, *a.shape[1:]))

    return Represented(tuple(replace(site.objects[0], site=i) for i, site in enumerate(sites)), lift)


def _factor(stack: FactorStack) -> Represented:
    """A_t with sign(c_t) sqrt|c_t|, and B_t^T with sqrt|c_t|: a row is one direction of rank in both."""
    top = max(stack.ranks)
    a: list[torch.Tensor] = []
    b: list[torch.Tensor] = []
    for t, r in enumerate(stack.ranks):
        c = torch.as_tensor(stack.coefficients[t], dtype=torch.float64, device=stack.a[t].device)
        root = c.abs().sqrt().to(stack.dtype)[..., None, None]
        padding = (0, 0, 0, top - r)
        a.append(torch.nn.functional.pad(stack.folded_a(t) * root * c.sign().to(stack.dtype)[..., None, None], padding))
        b.append(torch.nn.functional.pad(stack.b[t].to(stack.dtype).mT * root, padding))
    objects = (Object.of(torch.stack(a, -3), " A", stack.ranks), Object.of(torch.stack(b, -3), " B", stack.ranks))
    return Represented(objects, lambda merged: LowRank(merged[1].full().mT, merged[0].full()))

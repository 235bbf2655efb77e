"""Two adapters, site by site from their factors, and the tensors beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ...adapters import Adapter, SiteFactors, align, find_zeros
from ...errors import InputError
from ...flow import Flow
from ...resources import available_cores
from ...shards import TensorRef
from .dense import compare_tensors, pair_up
from .records import Comparison, Difference, Figures, Observe, Operand, Ranks, Side, Status, largest_first
from .updates import compare_updates

if TYPE_CHECKING:
    from torch import Tensor

IN_FLIGHT = 256 << 20
"""Bytes of factors and of work on them that are in memory at any time; a larger site runs alone."""

_Pair = tuple[str, SiteFactors | None, SiteFactors | None]
_Loaded = list["tuple[Tensor, Tensor] | None"]


def compare_adapters(
    a: Adapter,
    b: Adapter,
    *,
    workers: int | None = None,
    planned: Callable[[int], None] = lambda count: None,
    observe: Observe = lambda name, count, nbytes: None,
) -> Comparison:
    """Compare two adapters of one base under common module names; a site that one of them lacks counts as a zero update there.

    Raises: InputError for adapters that share no module or do not fit one another, for NaN and infinity in a factor.
    """
    try:
        (a, b), notes = align([a, b])
    except InputError as refusal:
        hint = "adapters can be compared when they belong to one base and their layouts name modules alike"
        raise InputError(refusal.what, where=refusal.where, hint=hint) from refusal
    sites = pair_up(a.sites, b.sites)
    tensors = pair_up(_tensors(a), _tensors(b))
    planned(len(sites) + len(tensors))
    return Comparison(
        kind="adapters",
        a=_operand(a),
        b=_operand(b),
        sites=largest_first(_compare_sites(sites, workers, observe)),
        tensors=largest_first(compare_tensors(tensors, workers, observe)),
        notes=(*_remarks(a), *_remarks(b), *notes),
    )


def _tensors(adapter: Adapter) -> dict[str, TensorRef]:
    """What is compared entry by entry: the tensors beside the factors, and the magnitudes of DoRA."""
    found = {name: extra.ref for name, extra in adapter.extras.items()}
    return found | {f"{name}.magnitude": site.magnitude for name, site in adapter.sites.items() if site.magnitude}


def _operand(adapter: Adapter) -> Operand:
    return Operand(adapter.source.reference, adapter.label, adapter.layout)


def _remarks(adapter: Adapter) -> list[str]:
    return [f"{adapter.label}: {note}" for note in adapter.notes]


def _compare_sites(pairs: Sequence[_Pair], workers: int | None, observe: Observe) -> list[Difference]:
    found: dict[str, Difference] = {}

    def store(pair: _Pair, result: Difference) -> None:
        found[pair[0]] = result
        observe(pair[0], 1, sum(site.nbytes for site in pair[1:] if site))

    flow = Flow[_Pair, _Loaded, Difference](
        cost=_cost,
        load=lambda pair: [site.read() if site else None for site in pair[1:]],
        work=_compare,
        store=store,
        workers=workers or available_cores(),
        limit=IN_FLIGHT,
    )
    flow.run(pairs, enter_worker=lambda: torch.set_num_threads(1))
    return [found[name] for name, _, _ in pairs]


def _cost(pair: _Pair) -> int:
    """Bytes in memory: as stored, and in float64 the factors, both of them joined, and their orthonormal bases."""
    return sum(site.nbytes + 3 * 8 * (site.a.spec.numel + site.b.spec.numel) for site in pair[1:] if site)


def _compare(pair: _Pair, loaded: _Loaded) -> Difference:
    name, *sites = pair
    factors: list[tuple[Tensor, Tensor, float] | None] = []
    for site, values in zip(sites, loaded, strict=True):
        if site is None or values is None:
            factors.append(None)
            continue
        find_zeros([(site.a.where, values[0]), (site.b.where, values[1])])
        factors.append((*values, site.scale))
    left, right = factors
    figures, ranks = compare_updates(left, right)
    if not math.isfinite(figures.a2 + figures.b2 + figures.difference2):
        raise InputError("the update is too large to be compared", where=f"site {name}", hint="inspect the adapters")
    if left is None or right is None:
        status: Status = "only in B" if left is None else "only in A"
    elif _same(left, right):
        status = "equal"
        figures, ranks = Figures(figures.a2, figures.a2, 0.0, figures.a2), Ranks(ranks.a, ranks.a, 0)
    else:
        status = "different" if figures.difference2 else "equal"
    return Difference(name, status, *map(_side, sites), figures=figures, ranks=ranks)


def _side(site: SiteFactors | None) -> Side | None:
    if site is None:
        return None
    experts = (site.experts,) if site.kind == "experts" else ()
    return Side((*experts, site.d_out, site.d_in), site.b.spec.dtype)


def _same(left: tuple[Tensor, Tensor, float], right: tuple[Tensor, Tensor, float]) -> bool:
    """Whether two sites hold the same numbers, so that rounding in their comparison must not show a difference."""
    return left[2] == right[2] and all(
        x.shape == y.shape and torch.equal(x.double(), y.double()) for x, y in zip(left[:2], right[:2], strict=True)
    )

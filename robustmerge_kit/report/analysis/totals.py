"""All sites together, from the figures of the sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from .factor_values import EDGES
from .merges import destroyed, total_energy
from .records import Direction, FactorValues, Merge, Pair, Site, Subspaces, TaskInMerge, Totals, Update


class Histograms(NamedTuple):
    """Values of one adapter's factors counted over all sites, in units of the rms of each site.

    Shapes: a, b (bins,).
    """

    a: torch.Tensor
    b: torch.Tensor

    def plus(self, other: Histograms) -> Histograms:
        """Both together."""
        return Histograms(self.a + other.a, self.b + other.b)


def total(sites: Sequence[Site], histograms: Sequence[Histograms | None]) -> Totals:
    """Cosines, norms, projections and energies as if all sites were one long update; the rest as means over the sites."""
    adapters = range(len(histograms))
    updates = [[site.updates[t] for site in sites] for t in adapters]
    norms = [_norm(update.norm for update in each if update) for each in updates]
    positive = [norm for norm in norms if norm]
    sizes = [[update.norm if update else None for update in site.updates] for site in sites]
    merged = [[site.merges[m] for site in sites] for m in range(len(sites[0].merges))] if sites else []
    return Totals(
        bins=EDGES,
        norm_ratio=max(positive) / min(positive) if positive else None,
        cancelled=_weighted((site.signs.cancelled, site.d_out * site.d_in) for site in sites),
        updates=tuple(_update(each, found) for each, found in zip(updates, histograms, strict=True)),
        pairs=tuple(_pairs(sites, norms)),
        merges=tuple(total_merge(each, sizes, norms) for each in merged),
    )


# --- updates ----------------------------------------------------------------------------------------------------------


def _update(each: Sequence[Update | None], histograms: Histograms | None) -> Update | None:
    known = [update for update in each if update]
    if not known or histograms is None:
        return None
    return Update(
        rank=max(update.rank for update in known),
        norm=_norm(update.norm for update in known),
        effective_rank=_mean(update.effective_rank for update in known),
        spectrum=_mean_by_place([update.spectrum for update in known]),
        pruned=_mean_by_place([update.pruned for update in known]),
        scaled=_mean_by_place([update.scaled for update in known]),
        a=_values([update.a for update in known], histograms.a),
        b=_values([update.b for update in known], histograms.b),
    )


def _values(each: Sequence[FactorValues], counts: torch.Tensor) -> FactorValues:
    shares = counts / counts.sum()
    return FactorValues(
        rms=_mean(values.rms**2 for values in each) ** 0.5,
        largest=max((values.largest for values in each if values.largest is not None), default=None),
        kurtosis=_mean_or_none(values.kurtosis for values in each),
        histogram=tuple(shares.tolist()),
    )


# --- pairs ------------------------------------------------------------------------------------------------------------


def _pairs(sites: Sequence[Site], norms: Sequence[float]) -> Iterable[Pair]:
    found: dict[tuple[int, int], list[tuple[Site, Pair]]] = {}
    for site in sites:
        for pair in site.pairs:
            found.setdefault((pair.first, pair.second), []).append((site, pair))
    for (first, second), each in sorted(found.items()):
        pairs = [pair for _, pair in each]
        inner = math.fsum((pair.cosine or 0.0) * _size(site, first) * _size(site, second) for site, pair in each)
        yield Pair(
            first=first,
            second=second,
            cosine=max(-1.0, min(1.0, inner / (norms[first] * norms[second]))),
            norm_ratio=norms[first] / norms[second],
            left=_subspaces([pair.left for pair in pairs if pair.left]),
            right=_subspaces([pair.right for pair in pairs if pair.right]),
            shared_first=_weighted((pair.shared_first, _size(site, first) ** 2) for site, pair in each),
            shared_second=_weighted((pair.shared_second, _size(site, second) ** 2) for site, pair in each),
            sign_conflict=_weighted((pair.sign_conflict, site.d_out * site.d_in) for site, pair in each),
            angles_left=_mean_where_there([pair.angles_left for pair in pairs]),
            angles_right=_mean_where_there([pair.angles_right for pair in pairs]),
        )


def _size(site: Site, index: int) -> float:
    update = site.updates[index]
    return update.norm if update else 0.0


def _subspaces(each: Sequence[Subspaces]) -> Subspaces:
    def mean(of: Callable[[Subspaces], float]) -> float:
        return _mean(map(of, each))

    return Subspaces(
        overlap=mean(lambda one: one.overlap),
        smallest=mean(lambda one: one.smallest),
        median=mean(lambda one: one.median),
        largest=mean(lambda one: one.largest),
    )


# --- merges -----------------------------------------------------------------------------------------------------------


def total_merge(each: Sequence[Merge], sizes: Sequence[Sequence[float | None]], norms: Sequence[float]) -> Merge:
    """One merge over all sites. sizes: norms of the updates at every site; norms: of the updates over all sites."""
    known = [merge for merge in each if merge.norm]
    whole = [merge.norm**2 / merge.kept for merge in known]
    norm = _norm(merge.norm for merge in known)
    seen = list(zip(known, whole, strict=True))
    return Merge(
        rank=_mean(merge.rank for merge in each),
        norm=norm,
        kept=norm**2 / math.fsum(whole) if known else 1.0,
        known=_weighted((merge.known, energy) for merge, energy in seen) or 1.0,
        invented=_weighted((merge.invented, merge.norm**2) for merge in known) or 0.0,
        spectrum=_mean_by_place([merge.spectrum for merge in each]),
        energy=total_energy([(merge.spectrum, energy) for merge, energy in seen]),
        tasks=tuple(
            _task([(merge.tasks[t], present[t]) for merge, present in zip(each, sizes, strict=True)], norms[t], norm)
            for t in range(len(norms))
        ),
    )


def _task(each: Sequence[tuple[TaskInMerge | None, float | None]], size: float, norm: float) -> TaskInMerge | None:
    known = [(task, norm_here**2) for task, norm_here in each if task and norm_here is not None]
    if not known:
        return None
    whole = size**2
    projection = math.fsum(task.projection * energy for task, energy in known) / whole
    through = math.fsum((task.projection**2 + task.crosstalk**2) * energy for task, energy in known) / whole
    crosstalk = max(0.0, through - projection**2) ** 0.5
    return TaskInMerge(
        cosine=max(-1.0, min(1.0, projection * size / norm)) if norm else None,
        projection=projection,
        crosstalk=crosstalk,
        destroyed=destroyed(projection, crosstalk),
        top=_direction([task.top for task, _ in known]),
        rest=_direction([task.rest for task, _ in known if task.rest]) if any(task.rest for task, _ in known) else None,
    )


def _direction(each: Sequence[Direction]) -> Direction:
    return Direction(
        left=_mean(one.left for one in each), right=_mean(one.right for one in each), ratio=_mean(one.ratio for one in each)
    )


# --- means ------------------------------------------------------------------------------------------------------------


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(value**2 for value in values))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else 0.0


def _mean_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _weighted(values: Iterable[tuple[float | None, float]]) -> float | None:
    """Mean of the values that exist, by their weights."""
    known = [(value, weight) for value, weight in values if value is not None]
    whole = math.fsum(weight for _, weight in known)
    return math.fsum(value * weight for value, weight in known) / whole if whole else None


def _mean_by_place(lists: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean of the k-th values, where a list is too short 0."""
    longest = max(map(len, lists), default=0)
    return tuple(_mean(values[k] if k < len(values) else 0.0 for values in lists) for k in range(longest))


def _mean_where_there(lists: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean of the k-th values of the lists that are long enough."""
    longest = max(map(len, lists), default=0)
    return tuple(_mean(values[k] for values in lists if k < len(values)) for k in range(longest))

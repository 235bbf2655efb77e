"""The merged delta of one site, ready to be added to a base tensor tile by tile."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Protocol

import torch

from .factors import InCore, LowRank, Spectral, norm
from .pipeline import Delta, finish
from .plan import Place, SiteStep
from .sites import LoadedSite, Sites
from .spaces import Dense

IN_MEMORY = 64 << 20
"""Bytes of a dense delta that may be held to be turned over; a larger one waits in a file."""


class SiteDelta(Protocol):
    """A delta that is added to tiles of a place. `norm2` is its squared norm, complete once all tiles have been added."""

    @property
    def norm2(self) -> float: ...

    def add_to(self, tile: torch.Tensor, place: Place, first: int) -> None:
        """Add rows `first` and following of what belongs into a place to a tile of it, in place."""
        ...


def delta_of(
    sites: Sites, groups: Sequence[list[LoadedSite]], device: torch.device, step: SiteStep
) -> tuple[SiteDelta | None, float]:
    """The merged delta of a site and the share of energy its rank limit kept; None where every input is zero.

    Without a rank limit nothing is truncated: low-rank results stay factors, dense results are made row by row.
    groups: the site as it was read, or its experts in batches.
    """
    found: dict[str, tuple[SiteDelta | None, float]] = {}
    for group in groups:
        found |= {site.step.site: one for site, one in zip(group, _each(sites, group, device), strict=True)}
    if step.experts is None:
        return found[step.site]
    ordered = [found[one.site] for one in step.each()]
    experts = ExpertDeltas([delta for delta, _ in ordered])
    whole2 = sum(delta.norm2 / max(retained, 1e-300) for delta, retained in ordered if delta)
    return experts, experts.norm2 / whole2 if step.cut is not None and whole2 > 0 else 1.0


def _each(sites: Sites, group: list[LoadedSite], device: torch.device) -> list[tuple[SiteDelta | None, float]]:
    """The deltas of a batch one by one."""
    step = group[0].step
    if not group[0].present:
        return [(None, 1.0)] * len(group)
    merged, draws = sites.merge(group, device)
    if step.cut is None and isinstance(merged.delta, Dense):
        return [(DenseDelta(merged.delta), float(merged.retained.min()))]
    finished = None if step.cut is None else finish(merged, step, draws)
    factors = finished.factors if finished else _multiplied(merged.delta)
    retained = (finished or merged).retained.reshape(-1).tolist()
    b = factors.b.reshape(len(group), *factors.b.shape[-2:])
    a = factors.a.reshape(len(group), *factors.a.shape[-2:])
    return [(FactoredDelta(LowRank(b[i], a[i])), retained[i]) for i in range(len(group))]


def _multiplied(delta: Delta) -> LowRank:
    """The delta as two factors, whatever form it came in."""
    assert not isinstance(delta, Dense)
    if isinstance(delta, LowRank):
        return delta
    if isinstance(delta, InCore):
        return LowRank(delta.core.q_b @ delta.matrix, delta.core.q_a.mT)
    assert isinstance(delta, Spectral)
    return LowRank(delta.q_b @ (delta.u * delta.s[..., None, :]), (delta.q_a @ delta.v).mT)


class ExpertDeltas:
    """The deltas of fused experts, each for the places of its own."""

    def __init__(self, each: Sequence[SiteDelta | None]) -> None:
        self._each = each

    @property
    def norm2(self) -> float:
        return sum(delta.norm2 for delta in self._each if delta)

    def add_to(self, tile: torch.Tensor, place: Place, first: int) -> None:
        assert place.expert is not None
        delta = self._each[place.expert]
        if delta is not None:
            delta.add_to(tile, place, first)


class FactoredDelta:
    """B A, multiplied out where it is added."""

    def __init__(self, factors: LowRank) -> None:
        self._factors = factors
        self.norm2 = _norm2(factors)

    def add_to(self, tile: torch.Tensor, place: Place, first: int) -> None:
        b, a = self._factors.b, self._factors.a
        left, right = (a.mT, b.mT) if place.transposed else (b, a)
        rows = left[place.row + first : place.row + first + tile.shape[0]]
        torch.addmm(tile, rows.to(tile.dtype), right.to(tile.dtype), out=tile)


def _norm2(factors: LowRank) -> float:
    """Squared norm, to 1e-4 of it: in the factors' dtype, and in float64 where the terms nearly cancel."""
    terms = (factors.a @ factors.a.mT) * (factors.b.mT @ factors.b)
    norm2 = float(terms.sum(dtype=torch.float64))
    if norm2 < 1e-2 * float(terms.abs().sum()):
        return float(norm(factors)) ** 2
    return norm2


class DenseDelta:
    """A delta made in blocks of rows when they are asked for. A transposed place needs its columns: it is kept whole."""

    def __init__(self, delta: Dense) -> None:
        self._delta = delta
        self._whole: torch.Tensor | None = None
        self.norm2 = 0.0

    def add_to(self, tile: torch.Tensor, place: Place, first: int) -> None:
        if place.transposed:
            whole = self._kept().mT
            rows = whole[place.row + first : place.row + first + tile.shape[0]].to(tile.device)
        else:
            rows = self._delta.rows(place.row + first, place.row + first + tile.shape[0])
        flat = rows.reshape(-1)
        self.norm2 += float(torch.dot(flat, flat))
        tile += rows

    def _kept(self) -> torch.Tensor:
        if self._whole is None:
            shape = self._delta.shape
            if 4 * shape.numel() <= IN_MEMORY:
                self._whole = self._delta.full()
            else:
                self._whole = _in_file(shape)
                for first, rows in self._delta.blocks():
                    self._whole[..., first : first + rows.shape[-2], :] = rows.cpu()
        return self._whole


def _in_file(shape: torch.Size) -> torch.Tensor:
    """Room for numbers in a file without a name, which the system may write out and which vanishes with its last use."""
    with tempfile.NamedTemporaryFile(prefix="rmkit-") as file:
        return torch.from_file(file.name, shared=True, size=shape.numel(), dtype=torch.float32).view(shape)

"""What a method's own code makes of a site, where no other implementation exists: the one place that asks the merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import torch

from ..factors import InCore, LowRank, Spectral
from ..pipeline import finish
from ..plan import Plan, SiteStep
from ..sites import LoadedSite, Sites
from ..spaces import Dense
from .expected import ByRows
from .stack import Factors, Stack


@dataclass
class OwnCode:
    """The sites of a plan as the merge computes them, without a rank cut.

    Statistics that a method collects over all sites are collected at the first need.
    """

    plan: Plan
    identities: Sequence[str]

    def __post_init__(self) -> None:
        self._sites = Sites(self.plan, self.identities, torch.device("cpu"))
        self._surveyed = False
        self._lock = Lock()

    def expect(self, step: SiteStep, stack: Stack, factors: Factors, *, double: bool, cut: int | None = None) -> ByRows:
        """The merged delta of a site or of one expert; `double`: from float64 factors, else as the merge reads them.

        cut: the rank it is truncated to by the merge's code, too; None: not at all.
        """
        with self._lock:
            if step.survey is not None and not self._surveyed:
                self._sites.survey()
                self._surveyed = True
        shape = step.model.d_out, step.model.d_in
        present = tuple(range(len(step.members))) if getattr(step.method, "keeps_zero", False) else stack.members
        by = "own code in float64" if double else "own code as merged"
        if not present:
            return ByRows(shape, lambda start, stop: _noisy(torch.zeros(stop - start, shape[1]), 0.0), by)
        given = [(a.double(), b.double()) for a, b in factors] if double else factors
        site = LoadedSite(replace(step, cut=cut, cuts=None, width=cut or step.width), present, given)
        merged, draws = self._sites.merge([site], torch.device("cpu"))
        delta = merged.delta if cut is None else finish(merged, site.step, draws).factors
        if isinstance(delta, Dense):
            return ByRows(shape, lambda start, stop: _noisy(delta.rows(start, stop), 1e-5), by)
        b, a = _multiplied(delta)
        return ByRows(shape, lambda start, stop: _noisy(b[start:stop] @ a, 3e-4), by)


def _noisy(values: torch.Tensor, spread: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    values = values.double()
    size = float(values.square().mean().sqrt()) if values.numel() else 0.0
    return values, values.abs() * 1e-5 + spread * size, 0


def _multiplied(delta: LowRank | InCore | Spectral) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(delta, LowRank):
        return delta.b.double(), delta.a.double()
    if isinstance(delta, InCore):
        return delta.core.q_b.double() @ delta.matrix.double(), delta.core.q_a.double().T
    return delta.q_b.double() @ (delta.u * delta.s).double(), (delta.q_a.double() @ delta.v.double()).T

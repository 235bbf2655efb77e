"""How far the inputs of a merge pull apart: cosines of their updates, pair by pair, over a sample of sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from .adapters import read_factors
from .base_weight import relative_to_base
from .factors import ratio
from .plan import Plan, SiteStep

SHARE = 0.02
"""Share of the inputs' bytes that is read again for it, so that it costs about as little of the time of a merge."""

LEAST = 8 << 20
"""Bytes that are read in any case: of small inputs all sites are measured."""

SLICE = 1 << 11
"""Columns of the joined factors that are in memory as float32."""

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Conflict:
    """Cosines of the inputs' updates, by recipe position; None where an update is zero.

    cosine_ij = <D_i, D_j> / (||D_i|| ||D_j||), where D_i is the update of input i at all sites that were measured, its scale
    included and its weight left out. A site that an input lacks is zero there; of DoRA the low-rank part alone counts.
    sites: how many were measured.
    """

    cosines: tuple[tuple[float | None, ...], ...]
    sites: int

    @property
    def lowest(self) -> tuple[int, int] | None:
        """The two inputs whose cosine is the lowest, None where no cosine is defined."""
        known = {(i, j): c for i, j in combinations(range(len(self.cosines)), 2) if (c := self.cosines[i][j]) is not None}
        return min(known, key=lambda pair: known[pair]) if known else None


def measure_conflict(plan: Plan) -> Conflict | None:
    """The cosines of a plan's inputs over sites that are spread evenly over all; None for a single input."""
    count = len(plan.adapters)
    if count < 2:
        return None
    steps = sample(plan.steps)
    sums = torch.zeros(count, count, dtype=torch.float64)
    for step in steps:
        places = torch.tensor([member.index for member in step.members])
        sums[places[:, None], places] += _products(step)
    sums = (sums + sums.T) / 2
    norms = sums.diagonal().clamp_min(0).sqrt()
    cosines = ratio(sums, norms[:, None] * norms).clamp(-1, 1).tolist()
    known = ((norms > 0) & norms.isfinite()).tolist()
    table = [tuple(cosines[i][j] if known[i] and known[j] else None for j in range(count)) for i in range(count)]
    return Conflict(tuple(table), len(steps))


def _products(step: SiteStep) -> torch.Tensor:
    """<D_i, D_j> of the inputs at a site, (n, n) float64, experts of one parameter together.

    It is the sum over the entries of block i, j of (A A^T) * (B^T B), where A and B join the factors of all inputs.
    """
    factors = relative_to_base(step, read_factors([member.factors for member in step.members]), torch.device("cpu"))
    ranks = torch.tensor([a.shape[-2] for a, _ in factors])
    products = _gram([a for a, _ in factors]) * _gram([b.mT for _, b in factors])
    scales = torch.tensor([member.factors.scale for member in step.members], dtype=torch.float64)
    owner = torch.nn.functional.one_hot(torch.arange(len(ranks)).repeat_interleave(ranks)).double() * scales
    return owner.T @ products.reshape(-1, *products.shape[-2:]).sum(0) @ owner


def _gram(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """X X^T, where X joins the rows of all parts, float64 sums of float32 products; only a slice of X is in memory.

    Shapes: parts (..., r_t, d) -> (..., R, R).
    """
    slices = (
        torch.cat([part[..., at : at + SLICE].float() for part in parts], -2) for at in range(0, parts[0].shape[-1], SLICE)
    )
    return torch.stack([(x @ x.mT).double() for x in slices]).sum(0)


def sample(steps: Sequence[SiteStep]) -> list[SiteStep]:
    """All sites when they are small, else some, in their own order, that hold about `SHARE` of the bytes.

    They follow the golden section, which falls into step with no number of modules a layer.
    """
    budget = max(LEAST, SHARE * sum(step.read_bytes for step in steps))
    chosen: set[int] = set()
    at = spent = 0.0
    while len(chosen) < len(steps) and spent < budget:
        at = (at + _GOLDEN) % 1
        index = int(at * len(steps))
        if index not in chosen:
            chosen.add(index)
            spent += steps[index].read_bytes
    return [steps[index] for index in sorted(chosen)]

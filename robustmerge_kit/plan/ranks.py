"""Output ranks that depend on the data, from the singular values of every merged site."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..ranks import energy_rank, spend_budget
from ..recipe import BudgetRank, EnergyRank
from .profiles import served_rank
from .steps import Plan


def settle_ranks(plan: Plan, spectra: Mapping[str, torch.Tensor]) -> Plan:
    """The plan once the singular values are known.

    Raises: PlanError when the serving program takes no rank that large.
    """
    ranks = choose_ranks(plan, spectra)
    return plan.with_ranks(ranks, served_rank(plan.recipe.output, max(ranks.values())))


def choose_ranks(plan: Plan, spectra: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Rank of every site by the recipe's rule, of every expert by itself; a site without a delta is written with rank 1.

    Shapes: spectra[site] (k,) float64, descending, zero beyond the numerical rank.
    """
    rule = plan.recipe.output.rank
    if isinstance(rule, EnergyRank):
        return {site: energy_rank(s, rule.energy) for site, s in spectra.items()}
    if isinstance(rule, BudgetRank):
        budget = rule.budget
        shapes = {each.site: (step.model.d_out, step.model.d_in) for step in plan.steps for each in step.each()}
        ranks = spend_budget(spectra, shapes, average=budget.average, score=budget.score, cost=budget.cost, cap=budget.cap)
        return {site: max(1, rank) for site, rank in ranks.items()}
    raise TypeError(f"output.rank {rule!r} does not depend on the data")

"""Analyse a recipe: read its adapters once, site by site, compare them, merge them by every method asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...adapters import read_factors
from ...execute import decide_ranks
from ...flow import Flow
from ...hashing import Hashing
from ...plan import Plan, SiteStep, gather, make_plan
from ...recipe import Recipe
from ...resources import Resources, available_cores
from ...sites import Sites
from .at_site import Found, Job, look
from .comparison import Candidate, plan_candidate
from .facts import describe
from .records import Analysis, Site
from .signs import BLOCK_ENTRIES
from .totals import Histograms

Observe = Callable[[str, int, int], None]
"""Called after every site: its name, 1, bytes read."""


def analyze(
    recipe: Recipe,
    candidates: Sequence[Candidate] = (),
    *,
    resources: Resources | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
    observe: Observe = lambda name, sites, nbytes: None,
) -> Analysis:
    """Compare the adapters of a recipe with each other, and with what its method and every candidate make of them.

    Adapters are read once, more often only where ranks depend on the data or statistics span all sites. `planned` is called
    once before any weight is read.

    Raises: RmkitError; every mistake of the user's is reported before any weight is read.
    """
    resources = resources or Resources(workers=available_cores())
    inputs = gather(recipe)
    with Hashing(inputs) as hashing:
        plans = [make_plan(recipe, inputs)]
        plans += [plan_candidate(recipe, candidate, inputs) for candidate in candidates]
        planned(plans[0])
        identities = [adapter.label for adapter in inputs.adapters]
        if any(plan.random for plan in plans):
            identities = hashing.identities()
        plans = [decide_ranks(plan, identities, resources) for plan in plans]
        sites, histograms, held = _look_at_all(plans, identities, resources, observe)
    return describe(plans, candidates, sites, histograms, held)


def _look_at_all(
    plans: Sequence[Plan], identities: Sequence[str], resources: Resources, observe: Observe
) -> tuple[list[Site], list[Histograms | None], float]:
    """Every site's figures by name, the values of every adapter's factors counted over all sites, and the smallest share of
    the energy of a DoRA update that was looked at.
    """
    device = torch.device(resources.device)
    shared = [Sites(plan, identities, device) for plan in plans]
    for each in shared:
        each.survey()
    sites: list[Site] = []
    histograms: list[Histograms | None] = [None] * len(identities)
    shares = [1.0]

    def store(job: Job, found: list[Found]) -> None:
        for one in found:
            sites.append(one.site)
            shares.append(one.held)
            for index, counted in one.counted.items():
                known = histograms[index]
                histograms[index] = known.plus(counted) if known else counted
        observe(job[0].site, 1, job[0].read_bytes)

    flow = Flow(
        cost=_cost,
        load=lambda job: read_factors([member.factors for member in job[0].members]),
        work=lambda job, factors: look(job, factors, shared),
        store=store,
        workers=resources.workers,
        limit=resources.memory,
        ahead=resources.workers,
    )
    flow.run(_jobs(plans), enter_worker=lambda: torch.set_num_threads(1))
    return sorted(sites, key=lambda site: site.site), histograms, min(shares)


def _jobs(plans: Sequence[Plan]) -> list[Job]:
    """The steps of every site, one per plan; weights are the same in all plans, so sites and members are."""
    by_name = [{step.site: step for step in plan.steps} for plan in plans]
    return [tuple(steps[step.site] for steps in by_name) for step in plans[0].steps]


def _cost(job: Job) -> int:
    """Bytes in memory: what the largest merge takes, float64 copies of the joined factors, a block of signs."""
    return max(map(_merge_bytes, job)) + 16 * _joined(job[0]) + 3 * 4 * BLOCK_ENTRIES


def _merge_bytes(step: SiteStep) -> int:
    dense = 4 * step.model.d_out * step.model.d_in if step.dense else 0
    return step.work_bytes + dense


def _joined(step: SiteStep) -> int:
    return sum(step.ranks) * (step.model.d_out + step.model.d_in)

"""The report from its parts: who takes part, the totals, the verdict, how exact it all is."""

from __future__ import annotations

from collections.abc import Sequence

from ... import __version__
from ...adapters import Adapter
from ...plan import Plan
from ...recipe import AdapterEntry
from .comparison import Candidate, labels
from .factor_values import pruning
from .records import AdapterFacts, Analysis, Exactness, MethodFacts, Site, Totals
from .thresholds import THRESHOLDS
from .totals import Histograms, total
from .verdict import verdict

PRUNING = ("density", "prune", "criterion", "scaling", "clamp", "clamp_quantile")
"""The parameters of RobustMerge that decide what pruned and scaled spectra are."""


def describe(
    plans: Sequence[Plan],
    candidates: Sequence[Candidate],
    sites: Sequence[Site],
    histograms: Sequence[Histograms | None],
    held: float,
) -> Analysis:
    """The whole report. `plans` are that of the recipe and one per candidate; held: smallest share of a DoRA update seen."""
    own = plans[0]
    totals = total(sites, histograms)
    adapters = tuple(
        _adapter(index, adapter, entry, own)
        for index, (adapter, entry) in enumerate(zip(own.adapters, own.recipe.adapters, strict=True))
    )
    methods = tuple(
        _method(plan, label) for plan, label in zip(plans, labels(candidates, own.recipe.merge_method), strict=True)
    )
    lean = tuple(_without_angles(site) for site in sites)
    return Analysis(
        rmkit=__version__,
        recipe=own.recipe.title,
        pruning=pruning(own.steps[0].params).model_dump(mode="json", include=set(PRUNING)),
        adapters=adapters,
        methods=methods,
        verdict=tuple(verdict(adapters, methods, totals, lean)),
        thresholds=dict(THRESHOLDS),
        exactness=tuple(_exactness(methods, totals, lean, held)),
        notes=own.notes,
        totals=totals,
        sites=lean,
    )


def _adapter(index: int, adapter: Adapter, entry: AdapterEntry, plan: Plan) -> AdapterFacts:
    weights = {member.weight for step in plan.steps for member in step.members if member.index == index}
    return AdapterFacts(
        label=adapter.label,
        reference=entry.adapter,
        base=adapter.base,
        sites=len(adapter.sites),
        ranks=tuple(sorted({factors.rank for factors in adapter.sites.values()})),
        weights=tuple(sorted(weights)),
    )


def _method(plan: Plan, label: str) -> MethodFacts:
    step = plan.steps[0]
    return MethodFacts(
        label=label,
        method=step.method.name,
        space=step.space[0] if step.space else None,
        parameters=step.params.model_dump(mode="json"),
        mixed=len({(step.method.name, step.params, step.space) for step in plan.steps}) > 1,
    )


def _without_angles(site: Site) -> Site:
    """The angles one by one are said in the totals only."""
    lean = tuple(pair.model_copy(update={"angles_left": (), "angles_right": ()}) for pair in site.pairs)
    return site.model_copy(update={"pairs": lean})


def _exactness(methods: Sequence[MethodFacts], totals: Totals, sites: Sequence[Site], held: float) -> list[Exactness]:
    found = [
        Exactness(figures="updates, pairs", how="exact: from the factors as stored, small matrices in float64", error=None),
        _signs(sites),
    ]
    if held < 1.0:
        how = f"DoRA updates by their leading directions, with {held:.4%} of the energy or more at every site"
        found.append(Exactness(figures="updates, pairs of DoRA adapters", how=how, error=1.0 - held))
    for index, (method, merge) in enumerate(zip(methods, totals.merges, strict=True)):
        if merge.known < 1.0 - 1e-6:
            how = f"the leading directions of a dense result, as many as the sum of ranks, with {merge.known:.4%} of its energy"
            error = 1.0 - merge.known
        else:
            how, error = "exact", None
        found.append(Exactness(figures=f"merges[{index}], {method.label}", how=how, error=error))
    return found


def _signs(sites: Sequence[Site]) -> Exactness:
    figures = "sign_conflict, cancelled"
    partly = [site for site in sites if site.signs.error or 0 < site.signs.rows < site.d_out]
    if not partly:
        return Exactness(figures=figures, how="exact: every entry is counted", error=None)
    entries = sum(site.d_out * site.d_in for site in sites)
    # Rows are drawn alike at sites of one height, so errors are taken as if they all pointed the same way: an upper bound.
    error = sum(site.signs.error * site.d_out * site.d_in for site in sites) / entries
    rows = max(site.signs.rows for site in partly)
    how = f"{rows} rows, drawn at random, of sites that have more; the error is a bound for the totals, each site has its own"
    return Exactness(figures=figures, how=how, error=error)

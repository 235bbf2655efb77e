"""Sites as they are read: values checked, zero deltas set apart, factors stacked for a method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from .adapters import check_values, find_zeros, read_factors
from .base_weight import open_rows, relative_to_base
from .cores import Cores
from .dora import OnBase, fold_magnitudes
from .draws import KeyedDraws
from .factors import FactorStack, Weights, core
from .method import Elementwise
from .pipeline import MakeCore, MergedSite, PreparedSite, merge_site
from .plan import Plan, SiteStep
from .spaces import Represented, Surveyed, survey_all

Factors = list[tuple["torch.Tensor", "torch.Tensor"]]
"""(A, B) of every member of a site, as stored, or relative to the base where `relative_to_base` made them so."""


@dataclass(frozen=True)
class LoadedSite:
    """The factors of one site, or of one fused expert. `present` are the members whose delta is not zero, by position
    in the step.
    """

    step: SiteStep
    present: tuple[int, ...]
    factors: Factors

    @property
    def zero(self) -> tuple[int, ...]:
        """Recipe positions of the adapters whose delta is zero."""
        return tuple(m.index for i, m in enumerate(self.step.members) if i not in self.present)


class Sites:
    """What all sites of a plan share: the keys of their random numbers, and statistics that span them.

    identities: what keys the random numbers, one per recipe adapter. cores: kept between merges, on a CPU.
    approximated: site -> recipe position -> share of energy kept, of the DoRA deltas that factors had to stand for.
    """

    def __init__(self, plan: Plan, identities: Sequence[str], device: torch.device, cores: Cores | None = None) -> None:
        self.plan = plan
        self.identities = identities
        self.device = device
        self.cores = cores
        self.surveys: dict[object, Surveyed] = dict(plan.surveyed)
        self.approximated: dict[str, dict[int, float]] = {}

    def surveyed(self, step: SiteStep) -> Surveyed | None:
        """The statistics of all sites that a step needs, None when it needs none."""
        return self.surveys.get(step.survey_key)

    def survey(self) -> None:
        """Collect the statistics that span all sites, one site in memory at a time, before any site is merged."""
        together: dict[object, list[SiteStep]] = defaultdict(list)
        for step in self.plan.steps:
            if step.survey is not None and step.survey_key not in self.surveys:
                together[step.survey_key].append(step)
        for key, steps in together.items():
            assert isinstance(steps[0].method, Elementwise)
            count = len(self.plan.adapters)
            self.surveys[key] = survey_all(steps[0].method, lambda steps=steps: self._each(steps), count, steps[0].survey)

    def _each(self, steps: Sequence[SiteStep]) -> Generator[tuple[Represented, KeyedDraws, list[int]]]:
        for step in steps:
            factors = relative_to_base(step, read_factors([member.factors for member in step.members]), self.device)
            groups = group_sites((step,), [factors])
            each = {site.step.site: site for group in groups for site in group}
            for site in (each[one.site] for one in step.each()):
                if site.present:
                    stack, draws = self.stack([site], self.device)
                    stack, base = on_base(site, stack)
                    prepared = PreparedSite(stack, site.step, draws, base)
                    yield prepared.represent(), draws, [step.members[i].index for i in site.present]

    def merge(self, group: list[LoadedSite], device: torch.device) -> tuple[MergedSite, KeyedDraws]:
        """The merged delta of a group of sites that are not zero, with a batch axis when there are several."""
        step = group[0].step
        stack, draws = self.stack(group, device)
        stack, base = on_base(group[0], stack)
        if len(group[0].present) < len(step.members):
            step = replace(step, params=step.params.among(group[0].present))
        merged = merge_site(stack, step, draws, self.surveyed(step), base, core if base else self._core_of(group, device))
        shares = {
            step.members[i].index: share
            for i, share in zip(group[0].present, merged.approximated, strict=False)
            if share is not None
        }
        if shares:
            self.approximated[step.site] = shares
        return merged, draws

    def _core_of(self, group: list[LoadedSite], device: torch.device) -> MakeCore:
        """What gives the core of a group of sites. A survey does not ask: its thread may round otherwise than a worker."""
        cores = self.cores
        if cores is None or device.type != "cpu":
            return core
        # Factors may be relative to the base, and are then known by its weight as well.
        key = tuple((s.step.site, s.step.weight, *(s.step.members[i].factors for i in s.present)) for s in group)
        return lambda stack: cores.core(key, stack)

    def stack(self, group: list[LoadedSite], device: torch.device) -> tuple[FactorStack, KeyedDraws]:
        """A group of sites as one stack, with a batch axis when there are several; its random numbers beside it."""
        first = group[0]
        members = [first.step.members[i] for i in first.present]
        zero = [(m.index, m.weight) for i, m in enumerate(first.step.members) if i not in first.present]
        absent = [*zero, *first.step.absent]
        order = sorted([*(m.index for m in members), *(index for index, _ in absent)])
        weights = Weights.of(
            [m.weight for m in members], [weight for _, weight in absent], [order.index(m.index) for m in members]
        )
        stack = FactorStack(
            a=tuple(_batch([site.factors[i][0] for site in group], device) for i in first.present),
            b=tuple(_batch([site.factors[i][1] for site in group], device) for i in first.present),
            coefficients=tuple(member.coefficient for member in members),
            weights=weights,
        )
        sites = [site.step.site for site in group]
        return stack, KeyedDraws.of(self.plan.recipe.seed, sites, [self.identities[member.index] for member in members])


def _batch(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    moved = [tensor if tensor.device == device else tensor.to(device, non_blocking=True) for tensor in tensors]
    return moved[0] if len(moved) == 1 else torch.stack(moved)


def on_base(site: LoadedSite, stack: FactorStack) -> tuple[FactorStack, OnBase | None]:
    """The stack of a site with the magnitudes of its DoRA members folded in, and what their deltas take from the base."""
    weight = site.step.weight
    members = [site.step.members[i] for i in site.present]
    if weight is None or not any(member.factors.magnitude for member in members):
        return stack, None
    magnitudes: list[torch.Tensor | None] = []
    for member in members:
        values = member.factors.read_magnitude()
        if values is not None and member.factors.magnitude is not None:
            check_values(member.factors.magnitude.where, values)
        magnitudes.append(values)
    return fold_magnitudes(stack, [member.factors.scale for member in members], magnitudes, open_rows(weight))


def group_sites(steps: Sequence[SiteStep], loaded: Sequence[Factors]) -> list[list[LoadedSite]]:
    """Check the values read and split them into batches of one shape, rank and set of adapters that are not zero.

    loaded: the factors of every step, relative to the base. A zero delta leaves the stack. Fused experts are sites of their
    own, called `site[e]`.
    """
    each = [one for step, factors in zip(steps, loaded, strict=True) for one in _experts(step, factors)]
    named = [
        (ref.where, values)
        for step, factors in each
        for member, pair in zip(step.members, factors, strict=True)
        for ref, values in zip((member.factors.a, member.factors.b), pair, strict=True)
    ]
    zeros = iter(find_zeros(named))
    groups: dict[object, list[LoadedSite]] = defaultdict(list)
    for step, factors in each:
        zero = [any([next(zeros), next(zeros)]) for _ in step.members]
        keeps_zero = getattr(step.method, "keeps_zero", False)
        dora = [member.factors.magnitude is not None for member in step.members]
        present = tuple(i for i, is_zero in enumerate(zero) if keeps_zero or dora[i] or not is_zero)
        groups[present, step.cut].append(LoadedSite(step, present, factors))
    return [batch for group in groups.values() for batch in _batches(group)]


def _experts(step: SiteStep, factors: Factors) -> list[tuple[SiteStep, Factors]]:
    if step.experts is None:
        return [(step, factors)]
    return [(one, [(a[e], b[e]) for a, b in factors]) for e, one in enumerate(step.each())]


def _batches(group: list[LoadedSite]) -> list[list[LoadedSite]]:
    """Experts in as many batches as the working memory asks for; other sites are in batches that fit already."""
    step = group[0].step
    size = len(group) if step.experts is None else step.experts_at_once
    return [group[i : i + size] for i in range(0, len(group), size)]

"""Everything an analysis says of one site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...base_weight import relative_to_base
from ...compress import EXACT_SIDE
from ...dora import as_factors
from ...draws import KeyedDraws
from ...factors import FactorStack, core
from ...pipeline import spectral
from ...plan import SiteStep
from ...recipe import layer_number, stack_name
from ...sites import Factors, LoadedSite, Sites, group_sites, on_base
from ..numbers import effective_rank
from .factor_values import Spectrum, Values, look_at, pruned_spectra, pruning
from .merges import MergedUpdate, judge, nothing
from .records import Merge, Pair, Signs, Site, Update
from .signs import SignCounts, count_signs
from .totals import Histograms
from .updates import Updates, compare

Job = tuple[SiteStep, ...]
"""The steps of one site, one per method; all of them have the same members."""


@dataclass(frozen=True)
class Found:
    """A site's figures, and the values of its factors counted, by position of the adapter.

    held: share of the energy of a DoRA update that its factors hold, the smallest; 1 without DoRA.
    """

    site: Site
    counted: Mapping[int, Histograms]
    held: float = 1.0


def look(job: Job, factors: Factors, shared: Sequence[Sites]) -> list[Found]:
    """The figures of a site, or of every expert of a fused one. `shared` holds what all sites of a plan share, one per step."""
    factors = relative_to_base(job[0], factors, shared[0].device)
    each = [{one.step.site: one for group in group_sites((step,), [factors]) for one in group} for step in job]
    return [_look([sites[name] for sites in each], shared) for name in each[0]]


def _look(loaded: Sequence[LoadedSite], shared: Sequence[Sites]) -> Found:
    """One site as every method sees it."""
    adapters = range(len(shared[0].plan.adapters))
    here = loaded[0]
    if not here.present:
        empty = tuple(nothing(None, adapters) for _ in loaded)
        return Found(_site(here.step, [None] * len(adapters), [], Signs(rows=0, cancelled=None, error=0.0), empty), {})
    stack, draws, shares = _stacked(here, shared[0])
    indices = [here.step.members[i].index for i in here.present]
    updates = Updates(core(stack), indices)
    stored = {index: here.factors[i] for i, index in zip(here.present, indices, strict=True) if index in updates.each}
    values = {index: (look_at(a), look_at(b)) for index, (a, b) in stored.items()}
    spectra = _spectra(here, stack, draws)
    known = [_update(t, updates, values, spectra, indices) for t in adapters]
    signs = count_signs(stack)
    pairs = [_with_signs(pair, signs, indices) for pair in compare(updates)]
    merges = tuple(merge_at(each, plan, updates, adapters) for each, plan in zip(loaded, shared, strict=True))
    said = Signs(rows=signs.rows, cancelled=signs.cancelled, error=float(signs.error.nan_to_num().max()))
    counted = {index: Histograms(a.counts, b.counts) for index, (a, b) in values.items()}
    held = min((share for share in shares if share is not None), default=1.0)
    return Found(_site(here.step, known, pairs, said, merges), counted, held)


def _stacked(here: LoadedSite, shared: Sites) -> tuple[FactorStack, KeyedDraws, tuple[float | None, ...]]:
    """The updates of a site as factors, its random numbers, and what factors hold of DoRA updates."""
    stack, draws = shared.stack([here], shared.device)
    stack, base = on_base(here, stack)
    if base is None:
        return stack, draws, ()
    stack, shares = as_factors(stack, base, draws)
    return stack, draws, shares


def updates_at(here: LoadedSite, shared: Sites) -> Updates | None:
    """The updates of a site; None where all of them are zero."""
    if not here.present:
        return None
    stack, _, _ = _stacked(here, shared)
    return Updates(core(stack), [here.step.members[i].index for i in here.present])


def _spectra(here: LoadedSite, stack: FactorStack, draws: KeyedDraws) -> tuple[list[Spectrum], list[Spectrum]]:
    """Spectra after pruning and after scaling, in the order of the stack."""
    params = pruning(here.step.params)
    if isinstance(params.density, tuple):
        params = params.model_copy(update={"density": tuple(params.density[i] for i in here.present)})
    return pruned_spectra(stack, params, draws)


def _update(
    index: int,
    updates: Updates,
    values: Mapping[int, tuple[Values, Values]],
    spectra: tuple[list[Spectrum], list[Spectrum]],
    indices: Sequence[int],
) -> Update | None:
    if index not in updates.each:
        return None
    found = updates.each[index]
    a, b = values[index]
    t = indices.index(index)
    return Update(
        rank=found.rank,
        norm=found.energy**0.5,
        effective_rank=effective_rank(found.s),
        spectrum=tuple(found.s.tolist()),
        pruned=spectra[0][t],
        scaled=spectra[1][t],
        a=a.facts,
        b=b.facts,
    )


def _with_signs(pair: Pair, signs: SignCounts, indices: Sequence[int]) -> Pair:
    conflict = float(signs.conflict[indices.index(pair.first), indices.index(pair.second)])
    return pair.model_copy(update={"sign_conflict": None if conflict != conflict else conflict})


def merge_at(here: LoadedSite, plan: Sites, updates: Updates | None, adapters: range) -> Merge:
    """What the merge of a plan does to the updates of a site."""
    step = here.step
    if updates is None or not here.present:
        return nothing(updates, adapters)
    merged, draws = plan.merge([here], plan.device)
    cut = step.full_rank if step.cut is None else step.cut
    found, held = spectral(merged, _looked_at(step), draws)
    seen = float(found.s.double().square().sum())
    return judge(MergedUpdate(found, seen / float(held) if held else seen, cut), updates, adapters)


def _looked_at(step: SiteStep) -> int:
    """Directions to find of a dense result: those that are written, and at least as many as the adapters have together.

    Where all of them are written they are found only if that is exact; a large matrix would take minutes.
    """
    exact = min(step.model.d_out, step.model.d_in) <= EXACT_SIDE
    written = step.cut if step.cut is not None else step.full_rank if exact else 0
    return max(sum(step.ranks), written)


def _site(
    step: SiteStep, updates: Sequence[Update | None], pairs: Sequence[Pair], signs: Signs, merges: tuple[Merge, ...]
) -> Site:
    norms = [update.norm for update in updates if update]
    stack, layer = stack_name(step.site), layer_number(step.site)
    return Site(
        site=step.site,
        stack=stack,
        layer=layer,
        module=step.site.removeprefix(f"{stack}.{layer}.") if layer is not None else step.site,
        d_out=step.model.d_out,
        d_in=step.model.d_in,
        norm_ratio=max(norms) / min(norms) if norms else None,
        updates=tuple(updates),
        pairs=tuple(pairs),
        signs=signs,
        merges=merges,
    )

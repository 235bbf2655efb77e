"""Base weights that inputs depend on: DoRA scales them, PiSSA and OLoRA begin with a part of them."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters import Adapter, SiteFactors
from ..checkpoint import Checkpoint
from ..errors import InputError, PlanError
from ..recipe import Recipe
from .places import find_places, stored_flipped, tied_heads
from .quantised import refuse_quantised
from .steps import BaseWeight, SiteStep


def find_weights(recipe: Recipe, adapters: Sequence[Adapter], base: Checkpoint | None) -> dict[str, BaseWeight]:
    """The base's weight of every site at which an input is DoRA, PiSSA or OLoRA.

    Raises: PlanError where the recipe does not say that DoRA is to be merged by its deltas; InputError where the base has no
        such weight, or a quantised one, or one whose part belongs to the embedding too.
    """
    scaled = {name: site for a in adapters for name, site in a.sites.items() if site.magnitude is not None}
    if scaled and (base is None or (recipe.output.kind == "adapter" and recipe.dora is None)):
        first = next(adapter for adapter in adapters if any(site.magnitude for site in adapter.sites.values()))
        raise PlanError(
            f"DoRA ({len(scaled)} modules) has no exact low-rank sum: its delta depends on the base's weights",
            where=first.label,
            hint="set base_model and dora: delta, or fold into the base with output: {kind: model}",
        )
    begun = {name: site for a in adapters for name, site in a.sites.items() if site.initial is not None}
    sites = scaled | begun
    if not sites or base is None:
        return {}
    flipped = any(stored_flipped(adapter, base) for adapter in adapters)
    tied = tied_heads(sites, base)
    for name in tied.keys() & begun.keys():
        raise InputError(
            f"{name} shares its weight with {tied[name]}, and training took {begun[name].initial}'s part out of both",
            where=str(base.folder),
            hint="merge it into its own residual base; or train without the head among the target modules",
        )
    found: dict[str, BaseWeight] = {}
    for name, site in sites.items():
        places = find_places(tied[name].removesuffix(".weight") if name in tied else name, site, base, flipped)
        if len(places) != 1:
            raise InputError(
                f"{name} is {'spread over tensors of' if places else 'not in'} the base, and {_needs(site)} needs its weight",
                where=str(base.folder),
                hint="is this the adapters' base?",
            )
        found[name] = BaseWeight(base.tensors[places[0].tensor], places[0])
    refuse_quantised(base, {weight.place.tensor: weight for weight in found.values()}, None)
    return found


def _needs(site: SiteFactors) -> str:
    return {"pissa": "PiSSA", "olora": "OLoRA", None: "DoRA"}[site.initial]


def notes_on_weights(steps: Sequence[SiteStep]) -> list[str]:
    """What taking the initial factors out of the base costs."""
    inits = [(step, {member.factors.initial for member in step.members} - {None}) for step in steps]
    pissa = [min(step.model.d_out, step.model.d_in) for step, kinds in inits if "pissa" in kinds]
    olora = [step for step, kinds in inits if "olora" in kinds]
    notes = [f"PiSSA: {len(pissa)} weights of the base are decomposed, the largest of rank {max(pissa)}"] if pissa else []
    return notes + ([f"OLoRA: {len(olora)} weights of the base are read for their leading columns"] if olora else [])

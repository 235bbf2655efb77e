"""Base weights that inputs depend on: the delta of a DoRA adapter is known only together with the weight it scales."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters import Adapter
from ..checkpoint import Checkpoint
from ..errors import InputError, PlanError
from ..recipe import Recipe
from .places import find_places, stored_flipped, tied_heads
from .quantised import refuse_quantised
from .steps import BaseWeight


def find_weights(recipe: Recipe, adapters: Sequence[Adapter], base: Checkpoint | None) -> dict[str, BaseWeight]:
    """The base's weight of every site at which an input is DoRA.

    Raises: PlanError where the recipe does not say that DoRA is to be merged by its deltas; InputError where the base has no
        such weight, or a quantised one.
    """
    sites = {name: site for a in adapters for name, site in a.sites.items() if site.magnitude is not None}
    if not sites:
        return {}
    if base is None or (recipe.output.kind == "adapter" and recipe.dora is None):
        first = next(adapter for adapter in adapters if any(site.magnitude for site in adapter.sites.values()))
        raise PlanError(
            f"DoRA ({len(sites)} modules) has no exact low-rank sum: its delta depends on the base's weights",
            where=first.label,
            hint="set base_model and dora: delta, or fold into the base with output: {kind: model}",
        )
    flipped = any(stored_flipped(adapter, base) for adapter in adapters)
    tied = tied_heads(sites, base)
    found: dict[str, BaseWeight] = {}
    for name, site in sites.items():
        places = find_places(tied[name].removesuffix(".weight") if name in tied else name, site, base, flipped)
        if len(places) != 1:
            raise InputError(
                f"{name} is {'spread over tensors of' if places else 'not in'} the base, and DoRA needs its weight",
                where=str(base.folder),
                hint="is this the adapters' base?",
            )
        found[name] = BaseWeight(base.tensors[places[0].tensor], places[0])
    refuse_quantised(base, {weight.place.tensor: weight for weight in found.values()}, None)
    return found

"""Recipe -> inputs: find every adapter, read its headers, bring their names together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters import Adapter, align, read_adapter
from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import PlanError, RmkitError, raise_all
from ..recipe import AdapterEntry, Recipe
from ..sources import resolve_all, resolve_base
from .places import fit_names


@dataclass(frozen=True)
class Inputs:
    """The adapters of a recipe in its order, aligned by name, and remarks about them together.

    base: the base model where the result needs its weights; the adapters' names are then the base's.
    """

    adapters: tuple[Adapter, ...]
    notes: tuple[str, ...]
    base: Checkpoint | None = None


def gather(recipe: Recipe) -> Inputs:
    """Read the headers of all adapters a recipe names, and of the base where the result needs it.

    Raises: PlanError when a base is needed and not named.
        InputError, all of one stage at once: first what cannot be found, then, by position, what cannot be read.
    """
    names = labels(recipe.adapters)
    places = [f"adapters[{index}]" for index in range(len(recipe.adapters))]
    sources = resolve_all([entry.adapter for entry in recipe.adapters], recipe.place, places, recipe.origin.commits)
    allow = (*recipe.allow, "known_init") if recipe.base_model else recipe.allow
    adapters: list[Adapter] = []
    errors: list[RmkitError] = []
    for index, (entry, source) in enumerate(zip(recipe.adapters, sources, strict=True)):
        try:
            adapters.append(
                read_adapter(
                    source,
                    label=names[index],
                    adapter_name=entry.adapter_name,
                    alpha=entry.alpha,
                    rename=entry.rename,
                    allow=allow,
                    expert_axes=entry.expert_axes,
                    expert_layout=entry.expert_layout,
                )
            )
        except RmkitError as error:
            error.where = f"{places[index]}: {error.where}".removesuffix(": ")
            errors.append(error)
    raise_all(errors)
    begun = any(site.initial for adapter in adapters for site in adapter.sites.values())
    base = _open_base(recipe) if recipe.needs_base or begun else None
    fitted: list[str] = []
    if base is not None:
        adapters, fitted = _fit(adapters, base, recipe)
    aligned, notes = align(adapters)
    return Inputs(tuple(aligned), (*fitted, *notes), base)


def _open_base(recipe: Recipe) -> Checkpoint:
    if recipe.base_model is None:
        key = "output.kind: model" if recipe.output.kind == "model" else "dora: delta"
        raise PlanError(f"{key} needs the base", where="base_model", hint="add base_model: FOLDER or org/name")
    try:
        commit = recipe.origin.commits.get(recipe.base_model)
        return open_checkpoint(resolve_base(recipe.base_model, recipe.place, commit))
    except RmkitError as error:
        error.where = f"base_model: {error.where}".removesuffix(": ")
        raise


def _fit(adapters: Sequence[Adapter], base: Checkpoint, recipe: Recipe) -> tuple[list[Adapter], list[str]]:
    """The adapters under the base's names, each by its own change of prefix."""
    fitted: list[Adapter] = []
    notes: list[str] = []
    errors: list[RmkitError] = []
    for adapter in adapters:
        try:
            renamed, said = fit_names(adapter, base, "unmatched" in recipe.allow)
        except RmkitError as error:
            errors.append(error)
            continue
        fitted.append(renamed)
        notes.extend(said)
    raise_all(errors)
    return fitted, notes


def labels(entries: Sequence[AdapterEntry]) -> list[str]:
    """A short, distinct name for every input: its `name`, else the end of its reference, numbered where that repeats."""
    found: list[str] = []
    for entry in entries:
        base = entry.name or entry.adapter.rstrip("/").rpartition("/")[2] or entry.adapter
        label, count = base, 2
        while label in found:
            label, count = f"{base}-{count}", count + 1
        found.append(label)
    return found

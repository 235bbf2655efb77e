"""Recipe -> inputs: find every adapter, read its headers, bring their names together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters import Adapter, align, read_adapter
from ..errors import RmkitError, raise_all
from ..recipe import AdapterEntry, Recipe
from ..sources import resolve_all


@dataclass(frozen=True)
class Inputs:
    """The adapters of a recipe in its order, aligned by name, and remarks about them together."""

    adapters: tuple[Adapter, ...]
    notes: tuple[str, ...]


def gather(recipe: Recipe) -> Inputs:
    """Read the headers of all adapters a recipe names.

    Raises: InputError, all of one stage at once: first what cannot be found, then, by position, what cannot be read.
    """
    names = labels(recipe.adapters)
    sources = resolve_all([entry.adapter for entry in recipe.adapters], recipe.place)
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
                    allow=recipe.allow,
                )
            )
        except RmkitError as error:
            error.where = f"adapters[{index}]: {error.where}".removesuffix(": ")
            errors.append(error)
    raise_all(errors)
    aligned, notes = align(adapters)
    return Inputs(tuple(aligned), tuple(notes))


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

"""A first recipe for adapters at hand: what `rmkit init` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters import align, read_adapter
from ..errors import RmkitError, raise_all
from ..recipe import Found, parse_recipe, starter
from ..sources import Source, resolve_all
from .fit import answers
from .inspect import name_apart


@dataclass(frozen=True)
class Draft:
    """A recipe's text, remarks for the user, and what still keeps `rmkit plan` from accepting it."""

    text: str
    notes: tuple[str, ...]
    problem: RmkitError | None


def draft(references: Sequence[str], place: Path, target: Path | None = None) -> Draft:
    """The commented recipe for adapters given relative to `place`; their paths become relative to the file `target`.

    Headers only. What would stop a merge by the defaults is answered in the text, with the reason.

    Raises: InputError when an adapter cannot be read, or when they do not belong together.
    """
    sources = resolve_all(references, place)
    labels = name_apart(references)
    errors: list[RmkitError] = []
    adapters = []
    for source, label in zip(sources, labels, strict=True):
        try:
            adapters.append(read_adapter(source, label=label))
        except RmkitError as error:
            errors.append(error)
    raise_all(errors)
    aligned, notes = align(adapters)
    home = target.absolute().parent if target else place
    found = [
        Found(_seen_from(home, source), a.label, tuple(site.rank for site in a.sites.values()), a.base, len(a.sites))
        for source, a in zip(sources, aligned, strict=True)
    ]
    text = starter(found, answers(aligned))
    remarks = [*notes, *(f"{adapter.label}: {note}" for adapter in aligned for note in adapter.notes)]
    return Draft(text, tuple(remarks), _problem(text, home / (target.name if target else "recipe.yaml")))


def _seen_from(home: Path, source: Source) -> str:
    """The reference as a recipe in `home` must write it."""
    if source.repository is not None or Path(source.reference).expanduser().is_absolute():
        return source.reference
    path = source.file or source.folder
    if path.is_relative_to(home) and ".." not in path.parts:
        relative = path.relative_to(home).as_posix()
    else:
        # `..` leads out of where a linked folder really lies, so only real folders may be climbed
        relative = os.path.relpath(path.parent.resolve() / path.name, home.resolve())
    return f"./{relative}" if relative.startswith("~") else relative


def _problem(text: str, path: Path) -> RmkitError | None:
    from ..plan import gather, make_plan

    try:
        recipe = parse_recipe(text, path)
        inputs = gather(recipe)
        make_plan(recipe, inputs)
    except RmkitError as error:
        return error
    return None

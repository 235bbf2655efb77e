"""The way to a value of a recipe, as its author writes it: `parameters.density`, `adapters[0].parameters.weight`."""

from __future__ import annotations

import re
from typing import Any

from .mergekit import MergekitRecipe
from .problems import Problems, show
from .schema import Recipe
from .yaml_text import Path

_NAME = re.compile(r"[^.\[\]{}\s]+(\.[^.\[\]{}\s]+|\[[0-9]+\])*")


def check_name(name: str, path: Path, problems: Problems) -> bool:
    """Whether a name, the key at `path`, is the way to a key; noted where it is not."""
    if _NAME.fullmatch(name):
        return True
    hint = "write it as parameters.density or adapters[0].parameters.weight"
    problems.add(path, f"{name!r} is not the way to a key of a recipe", hint=hint, at_key=True)
    return False


def way(name: str) -> Path:
    """The path of a name; one that is no key of a recipe is the name of a parameter."""
    steps = [int(number) if number else word for word, number in re.findall(r"([^.\[\]]+)(?![^\[]*\])|\[([0-9]+)\]", name)]
    known = {*Recipe.model_fields, *MergekitRecipe.model_fields}
    return tuple(steps) if steps[0] in known else ("parameters", *steps)


def put(data: dict[str, Any], path: Path, value: Any) -> None:
    """Set a value deep in a recipe's data; mappings on the way are made, entries of lists must be there.

    Raises: LookupError, with what stands there instead, for a place that does not exist.
    """
    inner: Any = data
    for number, step in enumerate(path):
        if not _takes(inner, step):
            raise LookupError(show(inner))
        following = path[number + 1] if number + 1 < len(path) else None
        if following is None:
            inner[step] = value
        elif isinstance(step, str):
            inner.setdefault(step, [] if isinstance(following, int) else {})
        elif isinstance(inner[step], str) and isinstance(following, str):
            inner[step] = {"adapter": inner[step]}  # the short form of an input
        inner = inner[step]


def _takes(data: Any, step: str | int) -> bool:
    """Whether a value can be put there: under any key of a mapping, in the place of an entry of a list."""
    if isinstance(step, str):
        return isinstance(data, dict)
    return isinstance(data, list) and step < len(data)

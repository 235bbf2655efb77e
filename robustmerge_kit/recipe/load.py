"""A recipe file -> Recipe: reads, checks everything that needs no input, and reports all mistakes at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import RecipeError, raise_all
from .mergekit import is_mergekit, refuse_both_forms, translate
from .parameters import check_parameters
from .problems import Problems, show
from .schema import Recipe
from .yaml_text import MAX_BYTES, read_yaml

_NOT_YET = {"sweep": "", "extends": "write the keys out", "vars": "write the values out", "dora": ""}
_NOT_YET_PER_ADAPTER = {"expert_axes": "", "expert_layout": ""}


def load_recipe(path: Path) -> Recipe:
    """The recipe of a file, in rmkit's or mergekit's form.

    Raises: RecipeError for a file that cannot be read; what `parse_recipe` raises.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise RecipeError("is a folder, not a recipe", where=str(path), hint="name the YAML file") from error
    except FileNotFoundError as error:
        raise RecipeError("no such file", where=str(path), hint="`rmkit init ADAPTER...` writes a recipe") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError(
            f"byte {content[error.start]:#04x} is not UTF-8", where=f"{path}:{line}", hint="save it as UTF-8"
        ) from error
    return parse_recipe(text, path)


def parse_recipe(text: str, path: Path | None = None) -> Recipe:
    """The recipe that `text` describes; `path` is the file it came from, for messages and relative paths.

    Raises: RecipeError `file:line:column: what` (several as Several) for syntax, unknown keys, methods and parameters, wrong
    types and values, each with the nearest right name.
    """
    document = read_yaml(text, str(path) if path else "recipe")
    if not isinstance(document.data, dict):
        place = document.where(document.value(()))
        raise RecipeError(
            f"a recipe is a mapping of keys, got {show(document.data)}", where=place, hint="start with merge_method: NAME"
        )
    problems = Problems(document)
    data = _without_unavailable(document.data, problems)
    refuse_both_forms(data, problems)
    translated = None
    if is_mergekit(data):
        translated = translate(data, problems, path.parent if path else Path.cwd())
        if translated is None:
            raise_all(problems.all())
            raise AssertionError("a recipe that cannot be translated has problems")
        data = translated.data
    recipe = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems.add_invalid(error, data, Recipe)
    check_parameters(data, problems)
    _check_names(data, problems)
    raise_all(problems.all())
    assert recipe is not None, "a recipe without problems is valid"
    recipe.remember(text, path, translated.notes if translated else (), translated.depth if translated else None)
    return recipe


def _without_unavailable(data: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """The data without keys that other versions know; each is noted, with the way to do without it."""
    kept = dict(data)
    for key in set(_NOT_YET) & set(kept):
        problems.add((key,), f"{key!r} is not available in this version", hint=_NOT_YET[key], at_key=True)
        del kept[key]
    entries = kept.get("adapters")
    if isinstance(entries, list):
        kept["adapters"] = list(entries)
        for i, entry in enumerate(entries):
            for key in _NOT_YET_PER_ADAPTER.keys() & entry.keys() if isinstance(entry, dict) else ():
                problems.add(("adapters", i, key), f"{key!r} is not available in this version", at_key=True)
                kept["adapters"][i] = {name: value for name, value in entry.items() if name not in _NOT_YET_PER_ADAPTER}
    return kept


def _check_names(data: Mapping[str, Any], problems: Problems) -> None:
    """Names of adapters are unique, and `extras: {first: NAME}` is one of them where all are given."""
    entries = data.get("adapters")
    first: dict[str, int] = {}
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and first.setdefault(name, i) != i:
            problems.add(
                ("adapters", i, "name"), f"adapters[{first[name]}] is called {name!r} too", hint="give each its own name"
            )

"""A recipe file -> Recipe: reads, checks everything that needs no input, and reports all mistakes at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from ..errors import raise_all
from ..homes import Folder, Opened, open_local, open_text
from .anchor import anchor, folder_of_models
from .extends import read_chain
from .mergekit import is_mergekit, refuse_both_forms, translate
from .origin import Origin, source_files
from .parameters import check_parameters
from .problems import Problems
from .schema import Recipe
from .search import plan_search
from .sweep import Sweep
from .variables import settle
from .write import as_yaml
from .yaml_text import MAX_BYTES


def load_recipe(
    reference: FilePath | str, settings: Mapping[str, Any] | None = None, commits: Mapping[str, str] | None = None
) -> Recipe:
    """The recipe of a file, in rmkit's or mergekit's form, with what it extends.

    A Path is a file here; text may also name one elsewhere, see `homes.open_text`. `settings` replaces values of its `vars`.
    `commits` holds what recipes and inputs are taken at, by reference, instead of their own revisions.

    Raises: RecipeError for a file that cannot be had; what `parse_recipe` raises.
    """
    here = Folder(FilePath())
    if isinstance(reference, FilePath):
        opened = open_local(str(reference), here, MAX_BYTES)
    else:
        opened = open_text(reference, here, commits or {}, MAX_BYTES)
    return _build(opened, settings or {}, commits or {})


def parse_recipe(
    text: str,
    path: FilePath | None = None,
    settings: Mapping[str, Any] | None = None,
    place: FilePath | None = None,
) -> Recipe:
    """The recipe that `text` describes; `path` is the file it came from, for messages and relative paths.

    place: the folder that relative paths start from instead, for a recipe that was moved.

    Raises: RecipeError `file:line:column: what` (several as Several) for syntax, unknown keys, methods and parameters, wrong
    types and values, each with the nearest right name; UsageError for `settings` that name no variable or have another type.
    """
    label = str(path) if path else "recipe"
    home = Folder(place or (path.parent if path else FilePath()))
    identity = os.path.realpath(path) if path else ""
    stem = path.stem if path else "recipe"
    return _build(Opened(text.encode(errors="replace"), home, label, label, identity, stem, told=text), settings or {}, {})


def _build(opened: Opened, settings: Mapping[str, Any], commits: Mapping[str, str]) -> Recipe:
    """From a recipe's file to the recipe."""
    document, files = read_chain(opened, commits)
    document, variables = settle(document, settings)
    problems = Problems(document)
    data = dict(document.data)
    refuse_both_forms(data, problems)
    translated = None
    if is_mergekit(data):
        _refuse_sweep(data, problems)
        translated = translate(data, problems, folder_of_models(files, problems))
        if translated is None:
            raise_all(problems.all())
            raise AssertionError("a recipe that cannot be translated has problems")
        data = translated.data
    place = opened.home.path if isinstance(opened.home, Folder) else FilePath()
    anchor(data, problems, files, place)
    if variables:
        data["vars"] = variables
    recipe = _check(data, problems)
    search = None
    if recipe is not None and recipe.sweep is not None and not len(problems):
        _refuse_foreign_command(recipe.sweep, files, problems)
        search = plan_search(recipe.sweep, data, problems, _check)
    raise_all(problems.all())
    assert recipe is not None, "a recipe without problems is valid"
    composed = len(files) > 1 or bool(variables) or not isinstance(opened.home, Folder)
    recipe.remember(
        Origin(
            text=_written_out(data, files) if composed else opened.text,
            place=place,
            stem=opened.stem,
            notes=translated.notes if translated else (),
            depth=translated.depth if translated else None,
            files=source_files(files),
            composed=composed,
            commits=commits,
            search=search,
        )
    )
    return recipe


def _check(data: Mapping[str, Any], problems: Problems) -> Recipe | None:
    """The recipe of the data, in our form; what is wrong with it is noted."""
    recipe = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems.add_invalid(error, data, Recipe)
    check_parameters(data, problems)
    _check_names(data, problems)
    return recipe


def _written_out(data: Mapping[str, Any], files: Sequence[Opened]) -> str:
    """The whole recipe as one file that needs no other, and no variables."""
    names = ", ".join(file.reference for file in source_files(files))
    header = f"# The recipe as it was run, written out from {names}; rmkit.json holds their text and the variables.\n"
    return as_yaml({key: value for key, value in data.items() if key != "vars"}, header)


def _refuse_sweep(data: dict[str, Any], problems: Problems) -> None:
    """Note and take away a sweep beside mergekit's inputs."""
    if "sweep" in data:
        hint = "list the inputs under `adapters`"
        problems.add(("sweep",), "a sweep needs a recipe in rmkit's own form", hint=hint, at_key=True)
        del data["sweep"]


def _refuse_foreign_command(sweep: Sweep, files: Sequence[Opened], problems: Problems) -> None:
    """Note a command or function in a file from elsewhere: nothing that a stranger wrote is run."""
    home = files[problems.document.value(("sweep",)).file].home
    if not isinstance(home, Folder) and sweep.evaluate != "diagnostics":
        hint = "read it, then copy the recipe here; or extend it by a recipe with a sweep of its own"
        problems.add(("sweep", "evaluate"), "a recipe from elsewhere may not say what is run here", hint=hint)


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

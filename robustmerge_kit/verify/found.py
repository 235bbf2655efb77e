"""The recipe and the inputs that a receipt names, found again: from which folder, and whether they are what they were."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, RmkitError, raise_all
from ..hashing import Hashing
from ..links import as_path
from ..plan import Inputs, gather
from ..recipe import Recipe, parse_recipe
from ..recorded import RECEIPT

RECIPE = "rmkit_recipe.yaml"


@dataclass(frozen=True)
class Found:
    """The recipe as it was run, its inputs, and what keys the random numbers of each."""

    recipe: Recipe
    inputs: Inputs
    identities: Sequence[str]


def find_inputs(folder: Path, receipt: Mapping[str, Any], place: Path | None) -> Found:
    """Look for the inputs from `place`; None: from the working folder, then from the folders above the output.

    Raises: InputError for what is missing or was changed, by name, as it is in the first place that has any input.
    """
    text = _recipe_text(folder)
    places = [place] if place is not None else list(dict.fromkeys([Path.cwd(), *folder.absolute().parents]))
    lacking = {one: list(_missing(_recipe(text, folder, receipt, one), receipt)) for one in places}
    whole = [one for one in places if not lacking[one]]
    if not whole:
        nearest = min(places, key=lambda one: len(lacking[one]))
        last = len(lacking[nearest]) - 1
        hint = "give the folder where relative paths of the recipe start with --inputs"
        raise_all(
            InputError("is missing", where=name, hint=hint if i == last else "") for i, name in enumerate(lacking[nearest])
        )
    failures: list[RmkitError] = []
    for one in whole:
        recipe = _recipe(text, folder, receipt, one)
        try:
            inputs = gather(recipe)
            with Hashing(inputs) as hashing:
                raise_all(_changed(recipe, inputs, hashing, receipt))
                return Found(recipe, inputs, hashing.identities())
        except RmkitError as error:
            failures.append(error)
    raise failures[0]


def _recipe_text(folder: Path) -> str:
    try:
        return (folder / RECIPE).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(folder / RECIPE)) from error


def _recipe(text: str, folder: Path, receipt: Mapping[str, Any], place: Path) -> Recipe:
    """The recorded recipe, read as if it lay in `place`, at the seed and the commits of the receipt."""
    recipe = parse_recipe(text, folder / RECIPE, place=place)
    try:
        commits = {entry["reference"]: entry["revision"] for entry in receipt["inputs"] if entry["revision"]}
        base = receipt.get("base")
        if base and base["revision"]:
            commits[base["reference"]] = base["revision"]
        seed = int(receipt["recipe"]["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("is not a receipt of a merge", where=str(folder / RECEIPT), hint="was it made by `run`?") from error
    seeded = recipe.model_copy(update={"seed": seed})
    seeded.remember(replace(recipe.origin, commits=commits))
    return seeded


def _missing(recipe: Recipe, receipt: Mapping[str, Any]) -> Iterator[str]:
    """References to folders and files here that do not exist; those to the Hub and to git are asked for later."""
    local = [entry.adapter for entry, known in zip(recipe.adapters, receipt["inputs"], strict=False) if not known["repository"]]
    base = receipt.get("base")
    if base and not base["repository"] and recipe.base_model:
        local.append(recipe.base_model)
    for reference in dict.fromkeys(local):
        if not any(os.path.exists(recipe.place / as_path(name)) for name in _readings(reference)):  # noqa: PTH110
            yield reference


def _readings(reference: str) -> Iterator[str]:
    """What a reference may mean as a path: itself, or a folder and a folder inside it after a colon."""
    yield reference
    for index, letter in enumerate(reference):
        if letter == ":":
            yield f"{reference[:index]}/{reference[index + 1 :]}"


def _changed(recipe: Recipe, inputs: Inputs, hashing: Hashing, receipt: Mapping[str, Any]) -> Iterator[InputError]:
    """What differs from the recorded inputs."""
    known = receipt["inputs"]
    if len(known) != len(inputs.adapters):
        yield InputError(f"the recipe names {len(inputs.adapters)} adapters, the receipt {len(known)}", where=RECEIPT)
        return
    digests = hashing.results()
    for entry, adapter, recorded in zip(recipe.adapters, inputs.adapters, known, strict=True):
        now = {path.name: digests[path].sha256 for path in adapter.files}
        yield from _differing(entry.adapter, {item["name"]: item["sha256"] for item in recorded["files"]}, now)
    base = receipt.get("base")
    if base is None or inputs.base is None:
        return
    where = str(recipe.base_model)
    if inputs.base.source.revision is not None:
        if inputs.base.source.revision != base["revision"]:
            yield InputError(f"is at commit {inputs.base.source.revision}, the receipt says {base['revision']}", where=where)
        return
    hashed = hashing.base_results()
    now = {file.name: hashed[file.path].sha256 for file in inputs.base.files}
    yield from _differing(where, {item["name"]: item.get("sha256", "") for item in base["files"]}, now)


def _differing(reference: str, recorded: Mapping[str, str], now: Mapping[str, str]) -> Iterator[InputError]:
    hint = "the output was made from other bytes; find those, or run the merge again"
    for name in sorted(recorded.keys() | now.keys()):
        if name not in now:
            yield InputError(f"{name} is missing", where=reference, hint=hint)
        elif name not in recorded:
            yield InputError(f"{name} was not there when the output was made", where=reference, hint=hint)
        elif recorded[name] != now[name]:
            what = f"{name} was changed: sha256 {now[name][:12]}.., the receipt says {recorded[name][:12]}.."
            yield InputError(what, where=reference, hint=hint)

"""One file that stands for many recipes: a recipe with a `matrix` of values, every combination of which is a recipe of its own.

Either a recipe with the further keys below, or a file that names one: `recipe: FILE`, and `output: PATTERN` for its results.

    matrix:  {merge_method: [ties, dare_ties], density: [0.1, 0.2]}    every combination; the last name varies fastest
    exclude: [{merge_method: ties, density: 0.1}]                      combinations to leave out, by some or all of their values
    include: [{merge_method: linear}]                                  further combinations, written out

A name is the way to a key of the recipe, as `parameters.density` or `adapters[0].parameters.weight`; one that is no key of a
recipe is the name of a parameter. Where results go, `output.path` or PATTERN, may hold names in braces.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from ..errors import RecipeError, RmkitError, Several, raise_all
from ..homes import Folder, open_local
from .load import parse_recipe
from .problems import Problems, nearest, show
from .schema import Recipe
from .ways import check_name, put, way
from .write import as_yaml
from .yaml_text import MAX_BYTES, Document, Path, read_yaml

MAX_VARIANTS = 10_000
KEYS = ("recipe", "matrix", "include", "exclude", "output")

_HOLE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Variant:
    """One recipe of a matrix. `text` is YAML; relative paths in it start from the folder of `path`, the recipe it varies.

    name: short, for files and lists. output: where the result goes. places: what line and column of `text` came from.
    """

    name: str
    text: str
    path: FilePath
    output: FilePath | None
    places: Mapping[tuple[int, int], str]


def expand(text: str, path: FilePath) -> tuple[Variant, ...] | None:
    """The recipes a matrix file stands for, in order; None for a file that is no matrix.

    Raises: RecipeError for a matrix that is written wrong; the recipes themselves are checked by `parse_variant`.
    """
    document = read_yaml(text, str(path))
    if not isinstance(document.data, dict) or "matrix" not in document.data:
        return None
    problems = Problems(document)
    _check(document.data, problems)
    raise_all(problems.all())
    combinations = list(_combinations(document.data, problems))
    raise_all(problems.all())
    expansion = _Expansion(document, path, *_base(document, path), problems)
    found = tuple(expansion.variant(combination) for combination in combinations)
    raise_all(problems.all())
    return _told_apart(found)


def parse_variant(variant: Variant, settings: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a variant, with `settings` as for `parse_recipe`.

    Mistakes are reported where they stand, in the matrix or in the recipe it varies.
    Raises: what `parse_recipe` raises.
    """
    try:
        return parse_recipe(variant.text, variant.path, settings)
    except RmkitError as error:
        parts = error.errors if isinstance(error, Several) else (error,)
        raise_all(type(part)(part.what, where=_original(part.where, variant), hint=part.hint) for part in parts)
        raise


@dataclass(frozen=True)
class _Combination:
    """Values by name as written, and where in the matrix each of them stands."""

    values: Mapping[str, Any]
    places: Mapping[str, Path]

    def slug(self, name: str) -> str:
        """A value as part of a file name; its number in the list where it has no short form."""
        return _slug(self.values[name]) or str(self.places[name][-1])


def _check(data: Mapping[str, Any], problems: Problems) -> None:
    """The form of the matrix's own keys."""
    if "recipe" in data:
        for key in data.keys() - set(KEYS):
            problems.add((key,), f"unknown key {key!r} beside `recipe`", hint=nearest(key, KEYS), at_key=True)
        for key in ("recipe", "output"):
            if key in data and not (isinstance(data[key], str) and data[key]):
                problems.add((key,), f"{key} must be text, got {show(data[key])}")
    matrix = data["matrix"]
    if not isinstance(matrix, dict) or not (matrix or data.get("include")):
        problems.add(("matrix",), f"matrix must be a mapping of names to lists of values, got {show(matrix)}")
        return
    for name, values in matrix.items():
        check_name(name, ("matrix", name), problems)
        if not isinstance(values, list) or not values:
            problems.add(("matrix", name), f"matrix.{name} must be a list of values, got {show(values)}")
    for key in ("include", "exclude"):
        listed = data.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(entry, dict) and entry for entry in listed):
            problems.add((key,), f"{key} must be a list of {{name: value}}, got {show(listed)}")
            continue
        for i, entry in enumerate(listed):
            for name in entry:
                if key == "exclude" and name not in matrix:
                    problems.add((key, i, name), f"{name!r} is not in the matrix", hint=nearest(name, matrix), at_key=True)
                check_name(name, (key, i, name), problems)
    count = math.prod(len(values) for values in matrix.values() if isinstance(values, list))
    if count > MAX_VARIANTS:
        problems.add(("matrix",), f"the matrix has {count} combinations, the limit is {MAX_VARIANTS}", at_key=True)


def _combinations(data: Mapping[str, Any], problems: Problems) -> Iterator[_Combination]:
    matrix: Mapping[str, list[Any]] = data["matrix"]
    excluded: list[Mapping[str, Any]] = data.get("exclude", [])
    used: set[int] = set()
    for choice in itertools.product(*(range(len(values)) for values in matrix.values())) if matrix else ():
        values = {name: matrix[name][i] for name, i in zip(matrix, choice, strict=True)}
        matching = {n for n, entry in enumerate(excluded) if all(values[name] == value for name, value in entry.items())}
        used |= matching
        if not matching:
            yield _Combination(values, {name: ("matrix", name, i) for name, i in zip(matrix, choice, strict=True)})
    for number in set(range(len(excluded))) - used:
        problems.add(("exclude", number), "excludes nothing: no combination has these values")
    for i, entry in enumerate(data.get("include", [])):
        yield _Combination(entry, {name: ("include", i, name) for name in entry})


def _base(document: Document, path: FilePath) -> tuple[Document, FilePath]:
    """The recipe that is varied: the one named, else the rest of the file itself."""
    named = document.data.get("recipe")
    if named is None:
        return document, path
    base_path = path.parent / FilePath(named).expanduser()
    base = read_yaml(open_local(str(base_path), Folder(FilePath()), MAX_BYTES).text, str(base_path))
    if not isinstance(base.data, dict):
        raise RecipeError(f"a recipe is a mapping of keys, got {show(base.data)}", where=base.where(base.value(())))
    if "matrix" in base.data:
        raise RecipeError("is a matrix itself", where=base.where(base.key(("matrix",))), hint="name an ordinary recipe")
    return base, base_path


@dataclass(frozen=True)
class _Expansion:
    """A matrix, where it stands, and the recipe it varies."""

    document: Document
    path: FilePath
    base: Document
    base_path: FilePath
    problems: Problems

    def variant(self, combination: _Combination) -> Variant:
        data = copy.deepcopy({k: v for k, v in self.base.data.items() if k not in ("matrix", "include", "exclude")})
        origin: dict[Path, str] = {}
        for name, value in combination.values.items():
            place = combination.places[name]
            steps = way(name)
            self._put(data, steps, copy.deepcopy(value), name, place)
            origin[steps] = self.document.where(self.document.value(place))
        name = "-".join(combination.slug(name) for name in combination.values)
        output = self._output(data, name, combination)
        header = ", ".join(f"{name}: {json.dumps(value)}" for name, value in combination.values.items())
        text = as_yaml(data, f"# {self.base_path.name} with {header}\n")
        return Variant(name, text, self.base_path, output, _places(text, self.base, origin))

    def _put(self, data: dict[str, Any], steps: Path, value: Any, name: str, place: Path) -> None:
        try:
            put(data, steps, value)
        except LookupError as found:
            self.problems.add(place, f"{name}: the recipe has no such place, but {found}")

    def _output(self, data: dict[str, Any], name: str, combination: _Combination) -> FilePath | None:
        """Where the result goes: the pattern filled in; without names in it, a folder for each combination inside.

        The variant's own `output.path` says so too, where the pattern stands there.
        """
        if "recipe" in self.document.data and "output" in self.document.data:
            pattern, place, at = self.document.data["output"], self.path.parent, ("output",)
        else:
            output = data.get("output")
            pattern = output.get("path") if isinstance(output, dict) else None
            if not isinstance(pattern, str):
                title = data.get("name") or self.base_path.stem
                return FilePath(f"{title}-merged".replace("/", "-")) / name
            place, at = self.base_path.parent, ("output", "path") if self.base is self.document else ("recipe",)
        values = combination.values
        unknown = [hole for hole in _HOLE.findall(pattern) if hole not in values]
        if unknown:
            self.problems.add(at, f"{{{unknown[0]}}} is not a name of this combination", hint=nearest(unknown[0], values))
            return None
        filled = _HOLE.sub(lambda hole: combination.slug(hole[1]), pattern)
        filled = filled if filled != pattern else f"{pattern}/{name}"
        if at != ("output",):
            data["output"]["path"] = filled
        return place / FilePath(filled).expanduser()


def _slug(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, int | float | str) for item in value):
        text = "-".join(map(str, value))
    elif isinstance(value, bool | None):
        text = json.dumps(value)
    else:
        text = str(value) if isinstance(value, int | float | str) else ""
    short = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip(".-")
    return short if len(short) <= 60 else ""


def _told_apart(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Equal names, as of [1, 2] beside 3 and 1 beside [2, 3], get numbers."""
    seen: Counter[str] = Counter()
    found: list[Variant] = []
    for variant in variants:
        seen[variant.name] += 1
        count = seen[variant.name]
        found.append(variant if count == 1 else replace(variant, name=f"{variant.name}-{count}"))
    return tuple(found)


def _places(text: str, base: Document, origin: Mapping[Path, str]) -> dict[tuple[int, int], str]:
    """Line and column of every key and value of a variant's text -> where it was written."""
    written = read_yaml(text, "")
    found: dict[tuple[int, int], str] = {}

    def note(position: Sequence[int], from_matrix: str | None, from_base: str) -> None:
        # A mapping starts where its first key does; what the matrix says of that key is nearer than where the mapping stands.
        if from_matrix or _spot(position) not in found:
            found[_spot(position)] = from_matrix or from_base

    def walk(path: Path, value: Any) -> None:
        from_matrix = next((where for way, where in origin.items() if path[: len(way)] == way), None)
        note(written.key(path), from_matrix, base.where(base.key(path)))
        note(written.value(path), from_matrix, base.where(base.value(path)))
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
            walk((*path, step), inner)

    walk((), written.data)
    return found


def _spot(position: Sequence[int]) -> tuple[int, int]:
    """Line and column."""
    return position[-2], position[-1]


def _original(where: str, variant: Variant) -> str:
    label, _, position = where.partition(f"{variant.path}:")
    numbers = re.fullmatch(r"(\d+):(\d+)", position)
    if label or numbers is None:
        return where
    return variant.places.get((int(numbers[1]), int(numbers[2])), where)

"""What is wrong with a recipe, in sentences: pydantic's errors and ours, each at its line and column."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ..errors import RecipeError, RmkitError
from .yaml_text import Document, Path, Position

MAX_REPORTED = 40


class Problems:
    """Collects the mistakes of one recipe; `origin` says which keys of the text a path of the data was made from."""

    def __init__(self, document: Document, origin: Mapping[Path, Path] | None = None) -> None:
        self.document = document
        self.origin = dict(origin or {})
        self._found: dict[tuple[Position, str], RmkitError] = {}

    def elsewhere(self, origin: Mapping[Path, Path]) -> Problems:
        """The same collection, for data of which some values stand in other places of the text."""
        view = Problems(self.document, origin)
        view._found = self._found
        return view

    def add(self, path: Path, what: str, *, hint: str = "", at_key: bool = False) -> None:
        """Note a mistake at the value of `path`, or at its key."""
        source = self.source(path)
        position = self.document.key(source) if at_key else self.document.value(source)
        self._found.setdefault((position, what), RecipeError(what, where=self.document.where(position), hint=hint))

    def add_error(self, path: Path, error: RmkitError) -> None:
        """Note another room's error at the value of `path`."""
        position = self.document.value(self.source(path))
        where = self.document.where(position)
        self._found.setdefault((position, error.what), type(error)(error.what, where=where, hint=error.hint))

    def add_invalid(self, error: ValidationError, data: Any, model: type[BaseModel], path: Path = ()) -> None:
        """Note what pydantic found in `data`, which stands at `path` and was to be a `model`: one sentence per place."""
        worst: dict[Path, Mapping[str, Any]] = {}
        for found in error.errors(include_url=False):
            if found["type"] == "too_short" and found["input"]:
                continue
            place = _place(found["loc"], data, found["type"])
            if place not in worst or severity(found["type"]) > severity(worst[place]["type"]):
                worst[place] = dict(found)
        for place, found in worst.items():
            what, hint, at_key = self._sentence((*path, *place), found, model)
            self.add((*path, *place), what, hint=hint, at_key=at_key)

    def __len__(self) -> int:
        return len(self._found)

    def all(self) -> list[RmkitError]:
        """The mistakes in the order of the text; of very many, the first ones and their number."""
        found = [self._found[key] for key in sorted(self._found)]
        if len(found) > MAX_REPORTED:
            rest = RecipeError(f"{len(found) - MAX_REPORTED} more mistakes", where=self.document.label)
            return [*found[:MAX_REPORTED], rest]
        return found

    def source(self, path: Path) -> Path:
        """The path in the text of a path in the data."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origin:
                return (*self.origin[path[:length]], *path[length:])
        return path

    def spell(self, path: Path) -> str:
        """A path as a reader of the text would say it: `output.rank`, `adapters[0].name`."""
        return spell(self.source(path))

    def _sentence(self, path: Path, found: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, str, bool]:
        kind, value = found["type"], found["input"]
        if kind == "extra_forbidden":
            return (*unknown("key", str(path[-1]), known_keys(model, found["loc"])), True)
        if kind == "missing":
            inside = self.spell(path[:-1])
            return f"the key {path[-1]!r} is missing" + (f" in {inside}" if inside else ""), "", False
        name = self.spell(path) or "the recipe"
        if value is None:
            return f"{name} has no value", "write one, or delete the key", False
        what, hint = requirement(found)
        return f"{name} {what}, got {show(value)}", hint, False


def spell(path: Path) -> str:
    """`output.rank`, `adapters[0].name`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def show(value: Any) -> str:
    """A value of a recipe, as YAML would write it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(str, value))}"[:80] if value else "{}"
    return f"{value!r}" if len(repr(value)) <= 80 else f"{value!r:.77}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint of an unknown name: what was probably meant, else all there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    if not near:
        near = [other for other in known if other.lower() == name.lower()]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known here: {', '.join(known)}" if known else ""


def unknown(noun: str, name: str, known: Iterable[str]) -> tuple[str, str]:
    """Sentence and hint about a name that does not exist."""
    return f"unknown {noun} {name!r}", nearest(name, known)


def known_keys(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys a user may type at the location pydantic reports an unknown one for."""
    here = _members(model)
    for step in loc[: len(loc) - 1]:
        if not (isinstance(step, str) and step.startswith("<")):
            here = [member for kind in here for inner in _inside(kind, step) for member in _members(inner)]
    fields = [kind.model_fields for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [field.alias or name for each in fields for name, field in each.items()]


def _members(annotation: Any) -> list[Any]:
    """The members of a union, without what Annotated adds."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _inside(kind: Any, step: str | int) -> list[Any]:
    if get_origin(kind) in (list, tuple) and isinstance(step, int):
        return [get_args(kind)[0]]
    if get_origin(kind) is dict:
        return [get_args(kind)[1]]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [field.annotation for name, field in kind.model_fields.items() if (field.alias or name) == step]
    return []


def _place(loc: tuple[str | int, ...], data: Any, kind: str) -> Path:
    """The path in `data` of pydantic's location, which also names members of unions."""
    place: list[str | int] = []
    inner: Any = data
    for number, step in enumerate(loc):
        if step == "[key]":
            break
        if _holds(inner, step):
            inner = inner[step]
        elif not (kind == "missing" and number == len(loc) - 1):
            continue
        place.append(step)
    return tuple(place)


def _holds(data: Any, step: str | int) -> bool:
    if isinstance(data, dict):
        return step in data
    return isinstance(data, list) and isinstance(step, int) and step < len(data)


def severity(kind: str) -> int:
    """Of several complaints about one value, a wrong range says more than a wrong type."""
    return 0 if kind.endswith("_type") else 1


def requirement(found: Mapping[str, Any]) -> tuple[str, str]:
    """What one of pydantic's errors asks of a value, and a hint."""
    kind, value, context = found["type"], found["input"], found.get("ctx", {})
    if kind == "form":
        return f"must be {_any_of(found['msg'].split('|'))}", ""
    what = _REQUIREMENTS[kind](context) if kind in _REQUIREMENTS else "is not accepted"
    if not isinstance(value, str):
        return what, ""
    if kind == "literal_error":
        near = difflib.get_close_matches(value, _choices(context), n=1)
        return what, f"did you mean {near[0]}?" if near else ""
    return what, _unquote(kind, value)


def _unquote(kind: str, value: str) -> str:
    if kind == "bool_type" and value.lower() in ("yes", "no", "on", "off", "true", "false"):
        return "YAML 1.2 writes true and false"
    if kind in ("float_type", "int_type") and re.fullmatch(r"[-+0-9.eE]+", value):
        return "write the number without quotes"
    return ""


def _choices(context: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", str(context.get("expected", "")))


def _any_of(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names)


def _own_words(context: Mapping[str, Any]) -> str:
    return f"is not accepted ({context.get('error', '')})"


_REQUIREMENTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "string_type": lambda _: "must be text",
    "int_type": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "bool_type": lambda _: "must be true or false",
    "finite_number": lambda _: "must be finite",
    "dict_type": lambda _: "must be a mapping (key: value)",
    "model_type": lambda _: "must be a mapping (key: value)",
    "model_attributes_type": lambda _: "must be a mapping (key: value)",
    "list_type": lambda _: "must be a list",
    "tuple_type": lambda _: "must be a list",
    "string_too_long": lambda c: f"must have at most {c['max_length']} characters",
    "string_too_short": lambda _: "must not be empty",
    "string_pattern_mismatch": lambda c: f"must match {c['pattern']}",
    "too_short": lambda c: f"must have at least {c['min_length']} entr{'y' if c['min_length'] == 1 else 'ies'}",
    "too_long": lambda c: f"must have at most {c['max_length']} entr{'y' if c['max_length'] == 1 else 'ies'}",
    "greater_than": lambda c: f"must be greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:g}",
    "less_than": lambda c: f"must be less than {c['lt']:g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:g}",
    "multiple_of": lambda c: f"must be a multiple of {c['multiple_of']:g}",
    "literal_error": lambda c: f"must be {_any_of(_choices(c))}",
    "value_error": _own_words,
    "assertion_error": _own_words,
}

"""`vars`: values a recipe names once and uses as `<name>`; `--set name=value` replaces them, and their types stay.

The brackets are neither shell's `$name` and `${name}`, so that nobody takes them for environment variables, nor anything YAML
or a shell would read as its own inside a flow list, a mapping or a here-document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import RecipeError, RmkitError, UsageError, raise_all
from .problems import nearest, show
from .yaml_text import MAX_BYTES, MAX_VALUES, Document, Node, Path, Position, read_yaml

NAME = r"[A-Za-z_][A-Za-z0-9_]*"

_USE = re.compile(f"<({NAME})>")
_OPAQUE = ("vars", "extends")
"""Keys whose values are taken as they stand: variables do not refer to each other, and the parent is known before them."""


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """`name=value` words of the command line, by name; the last one wins.

    Raises: UsageError for a word without name or `=`.
    """
    settings: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(NAME, name.strip()):
            raise UsageError("must be name=value", where=f"--set {word}", hint="for instance --set density=0.3")
        settings[name.strip()] = value
    return settings


def settle(document: Document, settings: Mapping[str, Any]) -> tuple[Document, dict[str, Any]]:
    """The document with every `<name>` replaced, and the variables' values in force.

    A scalar that is `<name>` alone becomes the value with its type; inside longer text the value is written out. `settings`
    holds values as they are, or as text that is read like YAML; for a variable that is text, the text itself.

    Raises: RecipeError for variables that are declared wrong, used wrong or unknown; UsageError for `settings` that do not fit.
    """
    declared = document.root.children.get("vars")
    values = _declared(document, declared)
    raise_all(_set(values, settings, document, declared))
    if not values:
        return document, values
    use = _Use(document, values)
    root = use.inside(document.root, ())
    raise_all(use.problems)
    return replace(document, root=root), values


def same_kind(one: Any, other: Any) -> bool:
    """Whether a variable with the default `other` may be declared again with the default `one`."""
    return _fitted(one, other) is not None


def describe_kind(default: Any) -> str:
    """The type of a variable, in words."""
    if isinstance(default, list):
        inner = _element(default)
        return "a list" if inner is None else f"a list, each {describe_kind(inner)}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words[type(default)]


def _declared(document: Document, declared: Node | None) -> dict[str, Any]:
    """The defaults; every mistake in them is raised at once."""
    if declared is None:
        return {}

    def at(position: Position, what: str, hint: str = "") -> RecipeError:
        return RecipeError(what, where=document.where(position), hint=hint)

    if not isinstance(declared.data, dict):
        raise at(declared.position, f"vars must be a mapping (name: default), got {show(declared.data)}")
    problems: list[RmkitError] = []
    values: dict[str, Any] = {}
    for name, node in declared.children.items():
        value = node.data
        if not re.fullmatch(NAME, str(name)):
            hint = "letters, digits and _, not a digit first"
            problems.append(at(declared.keys[str(name)], f"{str(name)!r:.60} cannot be the name of a variable", hint))
        elif value is None:
            problems.append(at(node.position, f"vars.{name} has no value", "its default says its type"))
        elif isinstance(value, dict) or (isinstance(value, list) and any(isinstance(x, dict | list | None) for x in value)):
            what = f"vars.{name} must be a number, true or false, text or a list of these, got {show(value)}"
            problems.append(at(node.position, what))
        elif not _finite(value):
            problems.append(at(node.position, f"vars.{name} must be finite, got {show(value)}"))
        else:
            values[str(name)] = value
    raise_all(problems)
    return values


def _set(values: dict[str, Any], settings: Mapping[str, Any], document: Document, declared: Node | None) -> list[RmkitError]:
    """Put the settings into the values; what does not fit is returned."""
    problems: list[RmkitError] = []
    for name, given in settings.items():
        if name not in values or declared is None:
            hint = nearest(name, values) if values else "declare it in the recipe, under vars: {name: default}"
            problems.append(UsageError(f"{document.label} has no variable {name!r}", where=f"--set {name}", hint=hint))
            continue
        default = values[name]
        fitted = _fitted(_read(given, default), default)
        if fitted is None or not _finite(fitted):
            place = document.where(declared.children[name].position)
            whole = isinstance(default, int) and not isinstance(default, bool) and isinstance(_read(given, default), float)
            hint = f"its default in {place} is a whole number; {default}.0 there would allow fractions" if whole else ""
            what = f"must be {describe_kind(default)}, like its default {show(default)}, got {show(given)}"
            problems.append(UsageError(what, where=f"--set {name}", hint=hint))
        else:
            values[name] = fitted
    return problems


def _read(given: Any, default: Any) -> Any:
    """A setting as a value: text means itself for a variable that is text, else what YAML reads in it."""
    if not isinstance(given, str) or isinstance(default, str):
        return given
    try:
        data = read_yaml(f"value: {given}\n", "").data
    except RmkitError:
        return None
    return data["value"] if list(data) == ["value"] else None


def _fitted(value: Any, default: Any) -> Any:
    """The value as the default's type; None where it is of another one. Whole numbers are numbers."""
    if isinstance(default, list):
        if not isinstance(value, list):
            return None
        inner = _element(default)
        scalars = (bool, int, float, str)
        fitted = [(x if isinstance(x, scalars) else None) if inner is None else _fitted(x, inner) for x in value]
        return None if any(x is None for x in fitted) else fitted
    if isinstance(default, float):
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return value if type(value) is type(default) else None


def _element(values: Sequence[Any]) -> Any:
    """A value that stands for the type of all of a list's; None where there are none or several types."""
    kinds = {type(value) for value in values}
    if kinds == {int, float}:
        return 1.0
    return values[0] if len(kinds) == 1 else None


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


class _Use:
    """Replaces variables in a document, within the bounds that hold for what is written out."""

    def __init__(self, document: Document, values: Mapping[str, Any]) -> None:
        self.document = document
        self.values = values
        self.problems: list[RmkitError] = []
        self._nodes = 0
        self._letters = 0

    def inside(self, node: Node, path: Path) -> Node:
        """The node with variables replaced in it; nodes are shared by aliases, so none is changed."""
        self._count(node.position)
        if isinstance(node.data, str):
            return self._text(node, path)
        if not node.children:
            return node
        children = {
            step: child if not path and step in _OPAQUE else self.inside(child, (*path, step))
            for step, child in node.children.items()
        }
        named = {step: child.data for step, child in children.items()}
        return replace(node, data=named if isinstance(node.data, dict) else list(named.values()), children=children)

    def _text(self, node: Node, path: Path) -> Node:
        text = node.data
        for name in dict.fromkeys(_USE.findall(text)):
            if name not in self.values and path[0] != "meta":
                hint = nearest(name, self.values)
                self._problem(node.position, f"no variable is called {name!r}", hint)
                return node
        whole = _USE.fullmatch(text)
        if whole and whole[1] in self.values:
            return self._value(self.values[whole[1]], node.position)
        return replace(node, data=_USE.sub(lambda use: self._written(use, node.position), text))

    def _value(self, value: Any, position: Position) -> Node:
        items = value if isinstance(value, list) else ()
        self._spend(len(value) if isinstance(value, str) else 0, position)
        children: dict[str | int, Node] = {i: self._value(item, position) for i, item in enumerate(items)}
        self._count(position)
        data = [child.data for child in children.values()] if isinstance(value, list) else value
        return Node(data, position, children, {}, len(children) + 1, 2 if children else 1)

    def _written(self, use: re.Match[str], position: Position) -> str:
        value = self.values.get(use[1])
        if value is None:
            return use[0]
        if isinstance(value, list):
            self._problem(position, f"<{use[1]}> is a list and cannot stand inside text", "use it as a whole value")
            return use[0]
        text = str(value).lower() if isinstance(value, bool) else str(value)
        self._spend(len(text), position)
        return text

    def _problem(self, position: Position, what: str, hint: str) -> None:
        self.problems.append(RecipeError(what, where=self.document.where(position), hint=hint))

    def _count(self, position: Position) -> None:
        self._nodes += 1
        if self._nodes > MAX_VALUES:
            what = f"the recipe has more than {MAX_VALUES} values once its variables are written out"
            raise RecipeError(what, where=self.document.where(position))

    def _spend(self, letters: int, position: Position) -> None:
        self._letters += letters
        if self._letters > MAX_BYTES:
            what = f"the recipe is larger than {MAX_BYTES} bytes once its variables are written out"
            raise RecipeError(what, where=self.document.where(position))

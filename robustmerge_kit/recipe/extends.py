"""`extends`: a recipe and those it builds on, read and laid over one another into one document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import RecipeError, RmkitError, raise_all
from ..homes import Folder, Opened, open_text
from .problems import show
from .variables import describe_kind, same_kind
from .yaml_text import MAX_BYTES, Document, Node, read_yaml

MAX_PARENTS = 8
BY_KEY = ("parameters", "output", "vars", "meta")
"""Mappings whose keys are laid over one another; every other value of a recipe replaces its parent's as a whole."""


def read_chain(first: Opened, commits: Mapping[str, str]) -> tuple[Document, tuple[Opened, ...]]:
    """The recipe laid over those it extends, and all their files, its own first. `commits` as in `open_text`.

    Raises: RecipeError for a file that is no mapping, a parent that cannot be had, a circle, a chain that is too long.
    """
    files = [first]
    levels = [_level(first, 0)]
    while (node := levels[-1].root.children.get("extends")) is not None:
        child, where = files[-1], levels[-1].where(node.position)
        if not isinstance(node.data, str) or not node.data.strip():
            hint = "a recipe extends one other recipe"
            raise RecipeError(f"extends must be text, a recipe's reference, got {show(node.data)}", where=where, hint=hint)
        try:
            parent = open_text(node.data, child.home, commits, MAX_BYTES)
        except RmkitError as error:
            what = f"extends {error.where or show(node.data)}: {error.what}"
            missing = isinstance(child.home, Folder) and error.what == "no such file"
            hint = "a path starts at the folder of the recipe that names it" if missing else error.hint
            raise RecipeError(what, where=where, hint=hint) from error
        chain = " -> ".join(each.label for each in (*files, parent))
        if any(parent.identity == each.identity for each in files):
            raise RecipeError(f"recipes extend each other in a circle: {chain}", where=where)
        if len(files) > MAX_PARENTS:
            raise RecipeError(f"more than {MAX_PARENTS} recipes extend each other: {chain}", where=where)
        files.append(parent)
        levels.append(_level(parent, len(levels)))
    labels = tuple(each.label for each in files)
    document = Document(labels, levels[-1].root)
    for level in reversed(levels[:-1]):
        _check_types(level.root, document)
        document = Document(labels, _over(level.root, document.root, BY_KEY))
    root = document.root
    return replace(document, root=_without(root, {"extends"}) if len(files) > 1 else root), tuple(files)


def _level(file: Opened, number: int) -> Document:
    document = replace(read_yaml(file.text, file.label, number), labels=("",) * number + (file.label,))
    if not isinstance(document.data, dict):
        place = document.where(document.value(()))
        raise RecipeError(
            f"a recipe is a mapping of keys, got {show(document.data)}", where=place, hint="start with merge_method: NAME"
        )
    return document


def _over(child: Node, parent: Node, by_key: tuple[str, ...] = ()) -> Node:
    """The child's keys over the parent's; a key without value takes the parent's away."""
    gone = {key for key, value in child.data.items() if value is None and key in parent.data}
    children = {key: node for key, node in parent.children.items() if key not in gone}
    keys = {**parent.keys, **child.keys}
    for key, node in child.children.items():
        if key in gone:
            continue
        below = children.get(key)
        deep = key in by_key and below is not None and isinstance(node.data, dict) and isinstance(below.data, dict)
        children[key] = _over(node, below) if deep and below is not None else node
    data: dict[Any, Any] = {key: node.data for key, node in children.items()}
    return replace(child, data=data, children=children, keys={key: place for key, place in keys.items() if key in data})


def _without(node: Node, names: set[str]) -> Node:
    children = {key: child for key, child in node.children.items() if key not in names}
    return replace(node, data={key: child.data for key, child in children.items()}, children=children)


def _check_types(child: Node, parent: Document) -> None:
    """A variable that is declared again keeps its type, since the parent's recipe was written for it."""
    ours, theirs = child.children.get("vars"), parent.root.children.get("vars")
    if ours is None or theirs is None or not isinstance(ours.data, dict) or not isinstance(theirs.data, dict):
        return
    problems: list[RmkitError] = []
    for name in ours.data.keys() & theirs.data.keys():
        new, old = ours.data[name], theirs.data[name]
        plain = all(isinstance(value, bool | int | float | str | list) for value in (new, old))
        if plain and not same_kind(new, old):
            place = parent.where(theirs.children[name].position)
            what = f"vars.{name} must be {describe_kind(old)}, as in {place}, got {show(new)}"
            problems.append(RecipeError(what, where=parent.where(ours.children[name].position)))
    raise_all(problems)

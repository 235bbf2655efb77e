"""YAML 1.2 text -> plain data that remembers where every key and value stands; hostile text costs bounded time and memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from ..errors import RecipeError, raise_all

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
"""Keys and values after every alias has been written out; the largest sensible recipe has a few hundred."""
MAX_DEPTH = 40
MAX_DIGITS = 30

Path = tuple[str | int, ...]
"""The way to a value: keys of mappings and positions in lists."""

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(slots=True)
class Node:
    """A value and where it stands; `size` and `height` count what is below it with aliases written out."""

    data: Any
    line: int
    column: int
    children: dict[str | int, Node] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 1
    height: int = 1


@dataclass(frozen=True)
class Document:
    """A recipe's data, and the file name its messages start with."""

    label: str
    root: Node

    @property
    def data(self) -> Any:
        return self.root.data

    def value(self, path: Path) -> tuple[int, int]:
        """Line and column, from 1, of the value at `path`, or of the closest thing around it that the text has."""
        node = self.root
        for step in path:
            if step not in node.children:
                break
            node = node.children[step]
        return node.line, node.column

    def key(self, path: Path) -> tuple[int, int]:
        """Line and column, from 1, of the last key of `path`; of the value where it is a position in a list."""
        node = self.root
        for step in path[:-1]:
            node = node.children.get(step, node)
        return node.keys.get(path[-1], self.value(path)) if path and isinstance(path[-1], str) else self.value(path)

    def where(self, position: tuple[int, int]) -> str:
        """`file:line:column`."""
        return f"{self.label}:{position[0]}:{position[1]}"


def read_yaml(text: str, label: str) -> Document:
    """One YAML 1.2 document with text keys; no tags, no merge keys, aliases within bounds.

    Raises: RecipeError for everything else.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise RecipeError(f"the recipe is larger than {MAX_BYTES} bytes", where=label, hint="is this a recipe?")
    reader = _Reader(label)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            reader.take(event)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
        raise RecipeError(f"not valid YAML: {error.problem or error.context}", where=position) from error
    except ReaderError as error:
        before = text[: error.position]
        position = f"{label}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise RecipeError(f"not valid YAML: the character {chr(error.character)!r} is not allowed", where=position) from error
    except YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", where=label) from error
    if reader.root is None:
        raise RecipeError("the recipe is empty", where=label, hint="`rmkit init ADAPTER...` writes a first one")
    raise_all(reader.problems)
    return Document(label, reader.root)


class _Reader:
    """Builds the nodes from the parser's events."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.root: Node | None = None
        self.problems: list[RecipeError] = []
        self.values = 0
        self.documents = 0
        self._open: list[Node] = []
        self._anchors: dict[str, Node | None] = {}
        self._anchor_of: dict[int, str] = {}
        self._key: list[Node | None] = []

    def take(self, event: Event) -> None:
        if isinstance(event, DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self._refuse(event, "a second document starts here", "one file holds one recipe; split it at ---")
        elif isinstance(event, NodeEvent):
            self._node(event)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            node = self._open.pop()
            self._key.pop()
            anchor = self._anchor_of.pop(id(node), None)
            if anchor is not None:
                self._anchors[anchor] = node
            self._place(node, event)

    def _node(self, event: NodeEvent) -> None:
        if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent) and event.ctag is not None:
            tag = _clip(str(event.ctag).replace("tag:yaml.org,2002:", "!!"))
            self._refuse(event, f"YAML tags are not read, got {tag}", "write the plain value without the tag")
        if isinstance(event, AliasEvent):
            return self._place(self._aliased(event), event)
        node = Node(None, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, ScalarEvent):
            node.data = self._scalar(event)
            if event.anchor:
                self._anchors[event.anchor] = node
            return self._place(node, event)
        node.data = {} if isinstance(event, MappingStartEvent) else []
        if event.anchor:
            self._anchors[event.anchor] = None
            self._anchor_of[id(node)] = event.anchor
        self._open.append(node)
        self._key.append(None)
        self._bound(len(self._open), event)
        return None

    def _aliased(self, event: AliasEvent) -> Node:
        name = event.anchor
        if name not in self._anchors:
            self._refuse(event, f"the alias *{name} refers to no anchor", f"write &{name} before the value it stands for")
        target = self._anchors[name]
        if target is None:
            self._refuse(event, f"the alias *{name} stands inside the value it refers to")
        self.values += target.size
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        return Node(target.data, line, column, target.children, target.keys, target.size, target.height)

    def _place(self, node: Node, event: Event) -> None:
        """Hang a finished node into the mapping or list that is open."""
        self.values += 1
        self._bound(len(self._open) + node.height, event)
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if isinstance(parent.data, list):
            parent.children[len(parent.data)] = node
            parent.data.append(node.data)
        elif self._key[-1] is None:
            self._key[-1] = node
            return
        else:
            self._put(parent, self._key[-1], node, event)
            self._key[-1] = None
        parent.size += node.size
        parent.height = max(parent.height, node.height + 1)

    def _put(self, parent: Node, key: Node, node: Node, event: Event) -> None:
        name, position = key.data, (key.line, key.column)
        where = f"{self.label}:{key.line}:{key.column}"
        if not isinstance(name, str):
            shown = "a list or mapping" if isinstance(name, list | dict) else f"{name!r:.40}"
            self.problems.append(RecipeError(f"a key must be text, got {shown}", where=where, hint="put it in quotes"))
            return
        if name == "<<":
            self.problems.append(
                RecipeError(
                    "merge keys (<<) are not part of YAML 1.2", where=where, hint="write the keys out, or alias the value"
                )
            )
            return
        if name in parent.data:
            first = parent.keys[name]
            self.problems.append(
                RecipeError(
                    f"the key {_clip(name)!r} is given twice, first at line {first[0]}", where=where, hint="delete one of them"
                )
            )
            return
        if node.data is None:
            node.line, node.column = max(position, (key.line, node.column if node.line == key.line else key.column))
        parent.data[name] = node.data
        parent.keys[name] = position
        parent.children[name] = node

    def _scalar(self, event: ScalarEvent) -> Any:
        text = event.value
        if not event.implicit[0]:
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            if len(text) > MAX_DIGITS:
                self._refuse(
                    event, f"the number {_clip(text)} has more than {MAX_DIGITS} digits", "put it in quotes if it is text"
                )
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _INFINITE.fullmatch(text):
            return float(text.replace(".", "", 1))
        return text

    def _bound(self, depth: int, event: Event) -> None:
        if depth > MAX_DEPTH:
            self._refuse(event, f"lists and mappings are nested more than {MAX_DEPTH} deep")
        if self.values > MAX_VALUES:
            self._refuse(event, f"the recipe has more than {MAX_VALUES} values once its aliases are written out")

    def _refuse(self, event: Event, what: str, hint: str = "") -> NoReturn:
        mark = event.start_mark
        raise RecipeError(what, where=f"{self.label}:{mark.line + 1}:{mark.column + 1}", hint=hint)


def _clip(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

"""YAML 1.2 text -> plain data that remembers where every key and value stands; hostile text costs bounded time and memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

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

from ..disclosure import UNPRINTABLE, find_secret
from ..errors import RecipeError, raise_all

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
"""Keys and values after every alias has been written out; the largest sensible recipe has a few hundred."""
MAX_DEPTH = 40
MAX_DIGITS = 30
MAX_TEXT = 50_000
"""Characters of one value; only a card's text has more than a line of them."""

Path = tuple[str | int, ...]
"""The way to a value: keys of mappings and positions in lists."""

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Position(NamedTuple):
    """Number of the file, 0 for the recipe itself; line and column from 1."""

    file: int
    line: int
    column: int


@dataclass(slots=True)
class Node:
    """A value and where it stands; `size` and `height` count what is below it with aliases written out."""

    data: Any
    position: Position
    children: dict[str | int, Node] = field(default_factory=dict)
    keys: dict[str, Position] = field(default_factory=dict)
    size: int = 1
    height: int = 1


@dataclass(frozen=True)
class Document:
    """A recipe's data, and the names its messages start with: of its own file, then of those it extends."""

    labels: tuple[str, ...]
    root: Node

    @property
    def data(self) -> Any:
        return self.root.data

    @property
    def label(self) -> str:
        """The name of the recipe's own file."""
        return self.labels[0]

    def value(self, path: Path) -> Position:
        """Position of the value at `path`, or of the closest thing around it that the text has."""
        node = self.root
        for step in path:
            if step not in node.children:
                break
            node = node.children[step]
        return node.position

    def key(self, path: Path) -> Position:
        """Position of the last key of `path`; of the value where it is a place in a list."""
        node = self.root
        for step in path[:-1]:
            node = node.children.get(step, node)
        return node.keys.get(path[-1], self.value(path)) if path and isinstance(path[-1], str) else self.value(path)

    def where(self, position: Position) -> str:
        """`file:line:column`."""
        return f"{self.labels[position.file]}:{position.line}:{position.column}"


def read_yaml(text: str, label: str, number: int = 0) -> Document:
    """One YAML 1.2 document with text keys; no tags, no merge keys, aliases within bounds. `number` is that of the file.

    No text may hold an access token, since recipes are copied into results, or control characters, since it is shown.

    Raises: RecipeError for everything else.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise RecipeError(f"the recipe is larger than {MAX_BYTES} bytes", where=label, hint="is this a recipe?")
    _refuse_secret(text, label)
    reader = _Reader(label, number)
    try:
        # without a list of plug-ins they are searched for on the disk
        for event in YAML(typ="safe", pure=True, plug_ins=[]).parse(text):
            reader.take(event)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
        raise RecipeError(f"not valid YAML: {error.problem or error.context}", where=position) from error
    except ReaderError as error:
        before = text[: error.position]
        position = f"{label}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise RecipeError(f"not valid YAML: the character {chr(error.character)!r} is not allowed", where=position) from error
    except (YAMLError, AssertionError) as error:  # of a version it does not know the parser asserts that it is known
        raise RecipeError(f"not valid YAML: {error}", where=label) from error
    if reader.root is None:
        raise RecipeError("the recipe is empty", where=label, hint="`rmkit init ADAPTER...` writes a first one")
    raise_all(reader.problems)
    return Document((label,), reader.root)


def _refuse_secret(text: str, label: str) -> None:
    found = find_secret(text)
    if found is not None:
        before = text[: found[0]]
        place = f"{label}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        hint = "take it out, since results hold a copy of the recipe, and give it as HF_TOKEN; if it was shared, revoke it"
        raise RecipeError("an access token or password stands in the recipe", where=place, hint=hint)


class _Reader:
    """Builds the nodes from the parser's events."""

    def __init__(self, label: str, number: int) -> None:
        self.label = label
        self.number = number
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
        node = Node(None, self._position(event))
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
        return Node(target.data, self._position(event), target.children, target.keys, target.size, target.height)

    def _position(self, event: Event) -> Position:
        return Position(self.number, event.start_mark.line + 1, event.start_mark.column + 1)

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
        name, position = key.data, key.position
        where = f"{self.label}:{position.line}:{position.column}"
        if not isinstance(name, str):
            shown = "a list or mapping" if isinstance(name, list | dict) else f"{name!r:.40}"
            self.problems.append(RecipeError(f"a key must be text, got {shown}", where=where, hint="put it in quotes"))
            return
        if "\n" in name or "\t" in name:
            self.problems.append(RecipeError(f"the key {_clip(name)!r} is not one line of text", where=where))
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
            what = f"the key {_clip(name)!r} is given twice, first at line {first.line}"
            self.problems.append(RecipeError(what, where=where, hint="delete one of them"))
            return
        if node.data is None:
            same_line = node.position.line == position.line
            node.position = max(position, position._replace(column=node.position.column)) if same_line else position
        parent.data[name] = node.data
        parent.keys[name] = position
        parent.children[name] = node

    def _scalar(self, event: ScalarEvent) -> Any:
        text = event.value
        if len(text) > MAX_TEXT:
            self._refuse(event, f"a text of {len(text)} characters; the longest may have {MAX_TEXT}")
        if UNPRINTABLE.search(text.replace("\n", " ").replace("\t", " ")):
            self._refuse(event, f"the text {_clip(text)!r} holds control characters", "write it without them")
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

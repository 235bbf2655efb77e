r"""Regular expressions written by strangers: a subset of Python's, matched in time linear in the text, whatever they say.

Known are literals, `.`, classes, the escapes \d \w \s \D \W \S \b \B \A \Z and escaped punctuation, `^ $ | * + ? {m,n}` (lazy
or not), and groups, named or not. References to groups, looking around, flags and atomic groups are refused: with them no
bound on time is known. A text holds no line breaks here, so `$` is its end.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

LONGEST = 512
"""Characters of the longest expression."""
MOST_STATES = 1000
"""Most states of the automaton; counted repetitions are written out."""
DEEPEST = 20
"""Deepest nesting of groups."""

Test = Callable[[str], bool]
Border = Literal["start", "end", "word", "inner"]

_CATEGORIES: dict[str, Test] = {
    "d": str.isdecimal,
    "D": lambda letter: not letter.isdecimal(),
    "w": lambda letter: letter.isalnum() or letter == "_",
    "W": lambda letter: not (letter.isalnum() or letter == "_"),
    "s": str.isspace,
    "S": lambda letter: not letter.isspace(),
}
_BORDERS: dict[str, Border] = {"A": "start", "Z": "end", "b": "word", "B": "inner"}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}


class Unreadable(Exception):
    """An expression that is broken, or outside of the subset; its text continues "the pattern ... "."""


@dataclass(frozen=True)
class _One:
    test: Test


@dataclass(frozen=True)
class _At:
    border: Border


@dataclass(frozen=True)
class _Row:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Either:
    options: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


_Node = _One | _At | _Row | _Either | _Repeat


class Regular:
    """One expression, ready to be matched.

    Raises: Unreadable when it is broken, too large, or outside of the subset.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise Unreadable(f"is {len(text)} characters long, more than {LONGEST}")
        self._tests: list[Test | None] = []
        self._borders: list[Border | None] = []
        self._next: list[tuple[int, ...]] = []
        self._accept = self._state()
        self._first = self._emit(_Parser(text).whole(), self._accept)

    def matches_start(self, text: str) -> bool:
        """Whether the text starts with a match, as `re.match` finds one."""
        current = self._reachable([self._first], text, 0)
        for index, letter in enumerate(text):
            if self._accept in current:
                return True
            after: list[int] = []
            for state in current:
                test = self._tests[state]
                if test is not None and test(letter):
                    after.extend(self._next[state])
            if not after:
                return False
            current = self._reachable(after, text, index + 1)
        return self._accept in current

    def _reachable(self, states: list[int], text: str, index: int) -> set[int]:
        """States that can be entered at a place in the text without reading a letter, with those they start from."""
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in found:
                continue
            found.add(state)
            border = self._borders[state]
            if self._tests[state] is None and (border is None or _holds(border, text, index)):
                waiting.extend(self._next[state])
        return found

    def _state(self, test: Test | None = None, border: Border | None = None, after: tuple[int, ...] = ()) -> int:
        if len(self._next) >= MOST_STATES:
            raise Unreadable(f"needs more than {MOST_STATES} states; its repetitions are too large")
        self._tests.append(test)
        self._borders.append(border)
        self._next.append(after)
        return len(self._next) - 1

    def _emit(self, node: _Node, after: int) -> int:
        """States for a node, built from its end; returns the first of them."""
        match node:
            case _One(test):
                return self._state(test, after=(after,))
            case _At(border):
                return self._state(border=border, after=(after,))
            case _Row(parts):
                for part in reversed(parts):
                    after = self._emit(part, after)
                return after
            case _Either(options):
                return self._state(after=tuple(self._emit(option, after) for option in options))
            case _Repeat(part, least, most):
                if most is None:
                    loop = self._state()
                    self._next[loop] = (self._emit(part, loop), after)
                    after = loop
                for _ in range(0 if most is None else most - least):
                    after = self._state(after=(self._emit(part, after), after))
                for _ in range(least):
                    after = self._emit(part, after)
                return after


def _holds(border: Border, text: str, index: int) -> bool:
    if border == "start":
        return index == 0
    if border == "end":
        return index == len(text)
    word = _CATEGORIES["w"]
    before, after = index > 0 and word(text[index - 1]), index < len(text) and word(text[index])
    return (before != after) == (border == "word")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> _Node:
        node = self._either()
        if self.at < len(self.text):
            raise Unreadable("is not a regular expression (a closing parenthesis too many)")
        return node

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self) -> str:
        letter = self._peek()
        if not letter:
            raise Unreadable("is not a regular expression (it ends too early)")
        self.at += 1
        return letter

    def _took(self, expected: str) -> bool:
        found = self.text.startswith(expected, self.at)
        self.at += len(expected) * found
        return found

    def _either(self) -> _Node:
        options = [self._row()]
        while self._took("|"):
            options.append(self._row())
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def _row(self) -> _Node:
        parts: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated())
        return _Row(tuple(parts))

    def _repeated(self) -> _Node:
        part = self._atom()
        bounds = self._bounds()
        if bounds is None:
            return part
        if isinstance(part, _At):
            raise Unreadable("repeats a border, which has no width")
        lazy = self._took("?")
        if not lazy and self._peek() == "+":
            raise Unreadable("has a possessive repetition, which is not read")
        if self._bounds() is not None:
            raise Unreadable("is not a regular expression (a repetition of a repetition)")
        return _Repeat(part, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        """Least and most of the repetition that stands here; None where none does."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._took(sign):
                return bounds
        end = self.text.find("}", self.at)
        inside = self.text[self.at + 1 : end].split(",") if self._peek() == "{" and end > 0 else []
        if not 1 <= len(inside) <= 2 or not all(set(each) <= set(string.digits) for each in inside) or not any(inside):
            return None
        self.at = end + 1
        least = int(inside[0] or 0)
        most = (int(inside[1]) if inside[1] else None) if len(inside) == 2 else least
        if max(least, most or 0) > MOST_STATES:
            raise Unreadable(f"repeats more than {MOST_STATES} times")
        if most is not None and most < least:
            raise Unreadable("is not a regular expression (a repetition that ends before it starts)")
        return least, most

    def _atom(self) -> _Node:
        letter = self._take()
        if letter == "(":
            return self._group()
        if letter == "[":
            return _One(self._class())
        if letter == ".":
            return _One(lambda other: other != "\n")
        if letter in "^$":
            return _At("start" if letter == "^" else "end")
        if letter in "*+?":
            raise Unreadable("is not a regular expression (nothing to repeat)")
        if letter == "\\":
            escape = self._take()
            if escape in _BORDERS:
                return _At(_BORDERS[escape])
            return _One(self._escape(escape))
        return _One(letter.__eq__)

    def _escape(self, letter: str) -> Test:
        if letter in _CATEGORIES:
            return _CATEGORIES[letter]
        if letter in string.digits:
            raise Unreadable("refers back to a group")
        if letter in _CONTROLS:
            return _CONTROLS[letter].__eq__
        if letter in string.ascii_letters:
            raise Unreadable(f"has the escape \\{letter}, which is not read")
        return letter.__eq__

    def _group(self) -> _Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(f"has groups nested more than {DEEPEST} deep")
        if self._took("?"):
            if self._took("P="):
                raise Unreadable("refers back to a group")
            if self._took("P<"):
                name = self.text[self.at :].partition(">")[0]
                if not name.isidentifier() or not self._took(f"{name}>"):
                    raise Unreadable("is not a regular expression (a bad name of a group)")
            elif not self._took(":"):
                raise Unreadable(f"has a group (?{self._peek()}, which is not read")
        node = self._either()
        if not self._took(")"):
            raise Unreadable("is not a regular expression (a parenthesis is not closed)")
        self.depth -= 1
        return _Row((node,))

    def _class(self) -> Test:
        negated = self._took("^")
        tests: list[Test] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._take()
            if low == "\\":
                escape = self._take()
                test = self._escape(escape)
                low = "" if escape in _CATEGORIES else _CONTROLS.get(escape, escape)
            else:
                test = low.__eq__
            if self._peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self._take()
                test = self._range(low)
            tests.append(test)
        self._take()
        return lambda letter: any(test(letter) for test in tests) != negated

    def _range(self, low: str) -> Test:
        high = self._take()
        if high == "\\":
            high = self._take()
            if high in _CATEGORIES or high in string.ascii_letters + string.digits:
                low = ""
        if not low or high < low:
            raise Unreadable("is not a regular expression (a bad range of characters)")
        return lambda letter: low <= letter <= high

"""PEFT's per-module settings: `rank_pattern` and `alpha_pattern`, whose keys are regular expressions written by strangers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import InputError

LONGEST = 512
"""Longest key that is taken for a regular expression, in characters."""
QUANTIFIERS = 3
"""Most unbounded quantifiers in one key: matching time grows as a power of their number."""

_PLAIN = re.compile(r"[\w.\-/]+")


class Pattern:
    r"""One setting by module: the first key k, in file order, with re.match(rf"(.*\.)?({k})$", module) decides.

    Raises: InputError for keys that are no regular expressions, or whose matching could take exponential time.
    """

    def __init__(self, values: Mapping[str, float], where: str) -> None:
        self._rules = [(key, None if _PLAIN.fullmatch(key) else _compile(key, where), value) for key, value in values.items()]

    def value(self, module: str, default: float | None) -> float | None:
        """The setting of a module, `default` where no key matches."""
        for key, regex, value in self._rules:
            if _ends_with(module, key) if regex is None else regex.match(module):
                return value
        return default


def _ends_with(module: str, key: str) -> bool:
    """What the regular expression of a key without operators says; its dots stand for any character."""
    start = len(module) - len(key)
    if start < 0 or (start > 0 and module[start - 1] != "."):
        return False
    tail = module[start:]
    return tail == key or (
        "." in key and key[-1] in (tail[-1], ".") and all(a in (b, ".") for a, b in zip(key, tail, strict=True))
    )


def _compile(key: str, where: str) -> re.Pattern[str]:
    problem = _danger(key)
    if problem:
        raise InputError(
            f"the pattern {key[:80]!r} {problem}", where=where, hint="write the module names out, one key per module"
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"the pattern {key[:80]!r} is not a regular expression ({error})", where=where) from error


def _danger(key: str) -> str | None:
    """Why matching might not end in reasonable time: a repeated group that itself repeats or branches, or too much of it."""
    if len(key) > LONGEST:
        return f"is {len(key)} characters long, more than {LONGEST}"
    bare = re.sub(r"\\.", "x", key)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    if re.search(r"\\[1-9]|\(\?P=", key):
        return "refers back to a group"
    branches: list[bool] = []
    repeats = 0
    closed = False
    for index, letter in enumerate(bare):
        after_group, closed = closed, False
        if letter == "(":
            branches.append(False)
        elif letter == ")" and branches:
            closed = branches.pop()
            if closed and branches:
                branches[-1] = True
        elif letter == "|" and branches:
            branches[-1] = True
        elif letter in "*+{" or (letter == "?" and index and bare[index - 1] != "("):
            if after_group and letter != "?":
                return "repeats a group that itself repeats or branches"
            if letter != "?":
                repeats += 1
            if branches:
                branches[-1] = True
    return f"has {repeats} repetitions, more than {QUANTIFIERS}" if repeats > QUANTIFIERS else None

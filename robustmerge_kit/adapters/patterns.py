"""PEFT's per-module settings: `rank_pattern` and `alpha_pattern`, whose keys are regular expressions written by strangers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from ..errors import InputError
from .regular import Regular, Unreadable

MOST_EXPRESSIONS = 256
"""Most keys that are more than a module's name: each is tried on every module."""

_PLAIN = re.compile(r"[\w.\-/]+")
_WHOLE = re.compile(r"\^((?:[\w\-/]|\\\.)+)")


class Pattern:
    r"""One setting by module: the first key k, in file order, with re.match(rf"(.*\.)?({k})$", module) decides.

    Keys that are names, or whole names as `^a\.b`, are looked up; only the others are tried one by one.

    Raises: InputError for keys that are no regular expressions, or not of the kind that is matched in linear time.
    """

    def __init__(self, values: Mapping[str, float], where: str) -> None:
        self._values = list(values.values())
        self._whole: dict[str, int] = {}
        self._names: dict[int, dict[str, int]] = defaultdict(dict)
        self._expressions: list[tuple[int, Regular]] = []
        for index, key in enumerate(values):
            if _PLAIN.fullmatch(key):
                self._names[len(key)][key] = index
            elif whole := _WHOLE.fullmatch(key):
                self._whole.setdefault(whole[1].replace("\\.", "."), index)
            else:
                self._expressions.append((index, _compile(key, where)))
        if len(self._expressions) > MOST_EXPRESSIONS:
            raise InputError(f"has {len(self._expressions)} regular expressions, more than {MOST_EXPRESSIONS}", where=where)

    def value(self, module: str, default: float | None) -> float | None:
        """The setting of a module, `default` where no key matches."""
        if not self._values:
            return default
        found = [self._whole.get(module, len(self._values)), *self._named(module)]
        first = min(found)
        for index, expression in self._expressions:
            if index > first:
                break
            if expression.matches_start(module):
                first = index
                break
        return self._values[first] if first < len(self._values) else default

    def _named(self, module: str) -> list[int]:
        """Positions of the names that a module ends with; their dots stand for any character."""
        found: list[int] = []
        for length, names in self._names.items():
            start = len(module) - length
            if start < 0 or (start > 0 and module[start - 1] != "."):
                continue
            tail = module[start:]
            found.extend(index for name, index in names.items() if name == tail or ("." in name and _fits(name, tail)))
        return found


def _fits(name: str, tail: str) -> bool:
    return name[-1] in (tail[-1], ".") and all(a in (b, ".") for a, b in zip(name, tail, strict=True))


def _compile(key: str, where: str) -> Regular:
    try:
        return Regular(rf"(.*\.)?({key})$")
    except Unreadable as error:
        hint = "write the module names out, one key per module"
        raise InputError(f"the pattern {key[:80]!r} {error}", where=where, hint=hint) from error

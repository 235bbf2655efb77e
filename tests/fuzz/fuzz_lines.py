"""Which lines of some functions ran: a tracer that looks at those functions only."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

Key = tuple[str, int, str]
"""File, first line and name of a function."""


class Lines:
    """Line coverage of the functions of `modules`, without those whose qualified name is in `leaving_out`."""

    def __init__(self, modules: Collection[ModuleType], leaving_out: Collection[str] = ()) -> None:
        self._wanted: dict[Key, set[int]] = {}
        for module in modules:
            path = module.__file__ or ""
            for code in _functions(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)):
                if not any(code.co_qualname == name or code.co_qualname.startswith(f"{name}.") for name in leaving_out):
                    lines = {line for *_, line in code.co_lines() if line and line != code.co_firstlineno}
                    self._wanted.setdefault(_key(code), set()).update(lines)
        self._reached: dict[Key, set[int]] = {key: set() for key in self._wanted}

    def trace(self, action: Callable[[], Any]) -> Any:
        """Do something and remember which lines it ran."""
        sys.settrace(self._call)
        try:
            return action()
        finally:
            sys.settrace(None)

    @property
    def share(self) -> float:
        """Lines that ran, of all lines."""
        return sum(map(len, self._reached.values())) / max(1, sum(map(len, self._wanted.values())))

    def missing(self) -> list[str]:
        """`file:line` of every line that never ran."""
        return [
            f"{Path(key[0]).name}:{line}" for key, lines in self._wanted.items() for line in sorted(lines - self._reached[key])
        ]

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        reached = self._reached.get(_key(frame.f_code))
        if reached is None:
            return None
        wanted = self._wanted[_key(frame.f_code)]

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line" and frame.f_lineno in wanted:
                reached.add(frame.f_lineno)
            return line

        return line


def _key(code: CodeType) -> Key:
    return code.co_filename, code.co_firstlineno, code.co_name


def _functions(code: CodeType) -> list[CodeType]:
    """Every function inside a module's code; class bodies and the module itself run once, on import."""
    found = [code] if code.co_flags & inspect.CO_OPTIMIZED else []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += _functions(constant)
    return found

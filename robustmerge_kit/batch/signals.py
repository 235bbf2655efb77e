"""The signals that end a batch: the first lets running merges finish, the second, or the end of the grace, stops them."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self


class Signals:
    """Inside the block, SIGTERM and Ctrl-C are counted instead of ending the program. `first` is the signal that came first."""

    def __init__(self, grace: float | None = None) -> None:
        """grace: seconds running merges get after the first signal; None: as long as they need."""
        self.first: int | None = None
        self._grace = grace
        self._count = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def stopping(self) -> int:
        """0: go on, 1: finish what runs, 2: stop what runs."""
        if self._count == 1 and self._grace is not None and time.monotonic() - self._since >= self._grace:
            return 2
        return min(self._count, 2)

    @property
    def name(self) -> str:
        """The first signal's name; empty while none came."""
        return "" if self.first is None else signal.Signals(self.first).name

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._count_it)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _count_it(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self.first, self._since = number, time.monotonic()
        self._count += 1

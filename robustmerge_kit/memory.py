"""Memory of processes, as the kernel counts it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_EVERY = 0.02
"""Seconds between two looks; each costs some ten microseconds."""


@dataclass
class AnonymousPeak:
    """The most anonymous memory seen: what is allocated, without files that are mapped. The kernel keeps no such peak."""

    most: int = 0
    _next: float = 0.0

    def look(self) -> None:
        """Look now, unless the last look was a moment ago; called from one thread."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY
            self.most = max(self.most, anonymous())


def anonymous(process: int | None = None) -> int:
    """Bytes of anonymous memory that are resident, of this process or another; 0 where the system does not say."""
    statm = _STATM if process is None else Path(f"/proc/{process}/statm")
    try:
        _, resident, shared = statm.read_text().split()[:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def peak_resident() -> int | None:
    """Bytes of the peak of everything resident, mapped files included; None where the system does not say."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def anonymous_of(process: int) -> int:
    """Memory of a process that no file stands for, its part of what it shares with those it was forked from or has forked.

    Takes some milliseconds, a thousand times as long as `anonymous`. 0 where the system does not tell, or the process is gone.
    """
    for file, key in (("smaps_rollup", b"Pss_Anon:"), ("status", b"RssAnon:")):
        try:
            with open(f"/proc/{process}/{file}", "rb") as lines:  # noqa: PTH123
                found = next((line for line in lines if line.startswith(key)), None)
        except OSError:
            continue
        if found is not None:
            return int(found.split()[1]) * 1024
    return 0

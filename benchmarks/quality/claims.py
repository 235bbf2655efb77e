"""One worker a piece of work: several processes share a cache, and a process that dies gives its claims back."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claimed(lock: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds `lock`; with `wait`, it does once the block is entered."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True

"""Which merges free workers help with, and what becomes of their help; nothing depends on it but the time a batch takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .entry import Entry
from .tasks import Failure, Happening, Helped, Lost, Progress, Task


class Takes(Protocol):
    """The part of an engine that is needed here."""

    def offer(self, task: Task, needs: int) -> bool:
        """Take a task if there is room for it now."""
        ...


class Helpers:
    """The tasks that help with merges; each has a number beyond those of the jobs."""

    def __init__(self, first: int, engine: Takes, task: Callable[[Entry, int], Task], tell: Callable[..., None]) -> None:
        """first: the number of the first. task: makes the task of a number that helps with a job."""
        self._next = first
        self._engine = engine
        self._task = task
        self._tell = tell
        self._busy: dict[int, Entry] = {}

    def __bool__(self) -> bool:
        """Whether any is at work."""
        return bool(self._busy)

    def send(self, running: Iterable[Entry]) -> None:
        """Give free workers to the running merges that can be shared, evenly, while the engine has any."""
        while True:
            open_ = [entry for entry in running if entry.shared and self._count(entry) < entry.most_helpers]
            if not open_:
                return
            entry = min(open_, key=lambda each: (self._count(each), each.number))
            if not self._engine.offer(self._task(entry, self._next), entry.needs):
                return
            self._busy[self._next] = entry
            self._next += 1
            self._tell("helping", job=entry.job.name, helpers=self._count(entry))

    def take(self, happening: Happening) -> bool:
        """Note what has happened to a task, if it is one of these."""
        entry = self._busy.get(happening.number)
        if entry is None:
            return False
        if isinstance(happening, Progress):
            entry.progress[happening.number] = happening.sites
            self._tell("progress", job=entry.job.name, sites=sum(entry.progress.values()))
            return True
        del self._busy[happening.number]
        if isinstance(happening, Lost):
            entry.most_helpers -= 1  # one that dies again and again must not go on for ever
            self._tell("worker_lost", job=entry.job.name, reason=f"helping: {happening.why}")
            return True
        entry.shared = False  # it has ended because there is nothing left to take
        files = list(happening.result.files) if isinstance(happening.result, Helped) else []
        reason: dict[str, Any] = {"reason": happening.result.reason} if isinstance(happening.result, Failure) else {}
        self._tell("helped", job=entry.job.name, files=files, **reason)
        return True

    def _count(self, entry: Entry) -> int:
        return sum(each is entry for each in self._busy.values())

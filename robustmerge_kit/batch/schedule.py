"""The course of a batch: check every job, refuse those in each other's way, merge the rest, retry what may pass.

Independent of where tasks run: an engine takes them and says what has happened.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .entry import Entry, Status
from .sharing import Helpers
from .tasks import Checked, Failure, Finished, Happening, Helped, Job, Lost, Merged, Progress, Task

Tell = Callable[..., None]
"""Called with the name of an event and its fields."""

TICK = 0.25
BUSY_AGAIN = 1.0
"""Seconds until a job is offered again whose output another process is writing."""
LONGEST_WAIT = 60.0


class Engine(Protocol):
    """Where tasks run. `largest` is the largest step in bytes that fits at all; `split_above` as in Settings."""

    @property
    def largest(self) -> int: ...

    @property
    def split_above(self) -> int: ...

    def offer(self, task: Task, needs: int) -> bool:
        """Take a task if there is room for it now."""
        ...

    def wait(self, seconds: float) -> list[Happening]:
        """What has happened, at the latest after some seconds."""
        ...

    def stop(self) -> None:
        """End what runs, cleanly where possible."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a batch is run; none of it changes results. backoff: seconds before the first further attempt, then twice as many.

    split_above: bytes of a folded model from which on free workers do parts of it, None: as the engine has it. stopping: asked
    all the time; 1 lets running merges finish, 2 ends them.
    """

    overwrite: bool = False
    restart: bool = False
    card: bool = True
    retries: int = 2
    backoff: float = 1.0
    fail_fast: bool = False
    only_check: bool = False
    split_above: int | None = None
    digests: Path | None = None
    folder: Path | None = None
    stopping: Callable[[], int] = lambda: 0


class Course:
    """One batch from its first check to its last merge."""

    def __init__(
        self, jobs: Sequence[Job], engine: Engine, settings: Settings, tell: Tell, broken: Mapping[str, Failure] | None = None
    ) -> None:
        """broken: what is known to be wrong with jobs, by name."""
        self._broken = broken or {}
        self.entries = [Entry(number, job) for number, job in enumerate(jobs)]
        self._engine = engine
        self._settings = settings
        self._tell = tell
        self._stop = 0
        self._helpers = Helpers(len(jobs), engine, lambda entry, number: self._task("help", entry, number), tell)

    def run(self) -> None:
        """Run everything; afterwards no entry is `running`, and what was not begun is `waiting`."""
        self._tell("checks", jobs=len(self.entries))
        for entry in self.entries:
            if entry.job.name in self._broken:
                self._fail(entry, self._broken[entry.job.name])
        self._drive("check", self._waiting())
        if self._stop == 0:
            self._refuse_collisions()
            self._refuse_what_cannot_fit()
        if not self._settings.only_check:
            self._tell("merges", jobs=len(self._waiting()))
            self._drive("merge", self._waiting())

    def _waiting(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == "waiting"]

    # --- between the two passes -------------------------------------------------------------------------------------------

    def _refuse_collisions(self) -> None:
        """No two jobs write one folder, or into each other's, and none reads what another one writes."""
        standing = [entry for entry in self.entries if entry.status in ("waiting", "skipped")]
        targets = {entry.target: entry for entry in standing}
        for entry in standing:
            mine = entry.target
            rival = next((other for other in standing if other is not entry and other.target == mine), None)
            around = next((targets[place] for place in mine.parents if place in targets), None)
            if rival is not None:
                what = f"{rival.job.name} ({rival.job.recipe}) writes the same folder"
            elif around is not None:
                what = f"it lies inside the output of {around.job.name} ({around.job.recipe})"
            else:
                continue
            self._refuse(entry, str(mine), what, "give each recipe its own output.path, or use --out")
        writing = {entry.target: entry for entry in self._waiting()}
        for entry in writing.values():
            for folder in entry.checked.inputs if entry.checked else ():
                source = next((writing[place] for place in (folder, *folder.parents) if place in writing), None)
                if source is not None:
                    what = f"it is the output of {source.job.name}, which this batch is to write"
                    self._refuse(entry, str(folder), what, "merge in two batches, one after the other")
                    break

    def _refuse_what_cannot_fit(self) -> None:
        for entry in self._waiting():
            if entry.checked and entry.checked.needs > self._engine.largest:
                what = (
                    f"a step needs {entry.checked.needs / 1e6:.0f} MB, {self._engine.largest / 1e6:.0f} MB are left of --memory"
                )
                self._refuse(entry, entry.job.recipe, what, "raise --memory, or lower -j")

    def _refuse(self, entry: Entry, where: str, what: str, hint: str) -> None:
        self._fail(entry, Failure(({"where": where, "what": what, "hint": hint},), 4))

    # --- one pass ---------------------------------------------------------------------------------------------------------

    def _drive(self, kind: Literal["check", "merge"], entries: Iterable[Entry]) -> None:
        ready = deque(entries)
        later: list[tuple[float, Entry]] = []
        running: dict[int, Entry] = {}
        for entry in ready:
            entry.attempts = 0
        while ready or later or running or self._helpers:
            self._heed()
            if self._stop and not running and not self._helpers:
                return
            if self._stop >= 2:
                self._engine.stop()
                for entry in running.values():
                    if kind == "merge":
                        self._end(entry, "stopped", "stopped")
                    else:
                        entry.status = "waiting"
                return
            now = time.monotonic()
            ready.extend(entry for when, entry in later if when <= now)
            later = [(when, entry) for when, entry in later if when > now]
            while ready and not self._stop and self._engine.offer(self._task(kind, ready[0]), ready[0].needs):
                entry = ready.popleft()
                running[entry.number] = entry
                entry.attempts += 1
                entry.status, entry.started = "running", time.monotonic()
                if kind == "merge":
                    entry.begin_sharing(self._can_be_shared(entry))
                self._tell("started" if kind == "merge" else "checking", job=entry.job.name, attempt=entry.attempts)
            if not ready and not later and not self._stop:
                self._helpers.send(running.values())
            for happening in self._engine.wait(TICK):
                if self._helpers.take(happening):
                    continue
                entry = running[happening.number]
                if isinstance(happening, Progress):
                    entry.progress[happening.number] = happening.sites
                    self._tell("progress", job=entry.job.name, sites=sum(entry.progress.values()))
                    continue
                del running[happening.number]
                entry.shared = False
                entry.seconds += time.monotonic() - entry.started
                pause = self._settle(kind, entry, happening)
                if pause is not None:
                    entry.status = "waiting"
                    later.append((time.monotonic() + pause, entry))

    def _task(self, kind: Literal["check", "merge", "help"], entry: Entry, number: int | None = None) -> Task:
        s = self._settings
        return Task(
            entry.number if number is None else number,
            kind,
            entry.job,
            attempt=entry.attempts + (kind != "help"),
            overwrite=s.overwrite,
            restart=s.restart,
            card=s.card,
            shared=self._can_be_shared(entry),
            digests=s.digests,
            folder=s.folder,
        )

    def _can_be_shared(self, entry: Entry) -> bool:
        least = self._engine.split_above if self._settings.split_above is None else self._settings.split_above
        return entry.checked is not None and entry.checked.parts > 1 and entry.checked.writes >= least

    def _heed(self) -> None:
        """Follow what is asked from outside; it never becomes less."""
        asked = self._settings.stopping()
        if asked > self._stop:
            self._stop = asked
            self._tell("draining" if asked == 1 else "stopping")

    def _settle(self, kind: Literal["check", "merge"], entry: Entry, happening: Finished | Lost) -> float | None:
        """Take note of how a task ended; seconds until it is tried again, None when it is not."""
        if isinstance(happening, Lost):
            problem = {"where": entry.job.recipe, "what": happening.why, "hint": "see the log, or lower -j"}
            failure = Failure((problem,), 70, transient=True)
            self._tell("worker_lost", job=entry.job.name, reason=happening.why)
        elif isinstance(happening.result, Failure):
            failure = happening.result
        else:
            assert not isinstance(happening.result, Helped)
            return self._succeed(entry, happening.result)
        if failure.busy:
            if entry.attempts == 1:
                self._tell("busy", job=entry.job.name, reason=failure.reason)
            entry.attempts = 0
            return BUSY_AGAIN
        if failure.transient and entry.attempts <= self._settings.retries:
            pause = min(self._settings.backoff * 2 ** (entry.attempts - 1), LONGEST_WAIT)
            entry.history.append(failure.reason)
            self._tell("retry", job=entry.job.name, attempt=entry.attempts, seconds=pause, reason=failure.reason)
            return pause
        self._fail(entry, failure)
        return None

    def _succeed(self, entry: Entry, result: Checked | Merged) -> None:
        if isinstance(result, Checked):
            entry.checked = result
            if result.done:
                self._end(entry, "skipped", "skipped", output=str(result.target), reason="done already")
            else:
                entry.status = "waiting"
                self._tell("checked", job=entry.job.name, sites=result.sites, output=str(result.target))
            return
        if result.skipped:
            self._end(entry, "skipped", "skipped", output=str(result.target), reason="done meanwhile")
            return
        entry.sites, entry.nbytes = result.sites, result.nbytes
        seconds = round(entry.seconds, 3)
        self._end(entry, "done", "done", output=str(result.target), seconds=seconds, attempt=entry.attempts)

    def _fail(self, entry: Entry, failure: Failure) -> None:
        entry.failure = failure
        self._end(entry, "failed", "failed", exit_code=failure.exit_code, errors=list(failure.problems))
        if self._settings.fail_fast and not self._stop:
            self._stop = 1
            self._tell("draining", reason="--fail-fast")

    def _end(self, entry: Entry, status: Status, event: str, **fields: Any) -> None:
        entry.status = status
        self._tell(event, job=entry.job.name, **fields)

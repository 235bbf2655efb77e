"""A fold that several processes share, on one machine or on several with one file system.

One process leads: it stages the folder, lets others know of it by a file there, does parts like everybody else, waits for the
rest, and completes the folder. Any process with the same plan may help. A part belongs to whoever holds the lock of its
journal; a process that dies gives it back, and whoever takes it next goes on with what the journal says is finished. So nothing
has to be told from process to process, and a fold that nobody helps with is merely done part by part.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import OutputError
from .fold import conclude
from .folding import Folding, Written
from .memory import AnonymousPeak
from .outcome import Outcome
from .output import (
    Journal,
    ModelWeights,
    clear_around,
    conclusion,
    journal_file,
    remove_journals,
    write_around,
)
from .plan import Plan, divide
from .sources import FileDigest

POLL = 0.1
"""Seconds between two looks at what others do."""
LAST_JOB = 60.0
"""Seconds that helpers may take to end their jobs after the leader has given up."""
_NAME = ".rmkit-parts"

Took = Callable[[Sequence[str]], None]
"""Called with the files of every part that this process begins with."""


class _Over(Exception):
    """The leader has given up, or another one has come in its place."""


@dataclass(frozen=True)
class _Crew:
    """One process at work on the parts of a fold. session: stands for the leader that all of them work for."""

    folding: Folding
    parts: Sequence[Plan]
    session: str
    took: Took
    finisher: ThreadPoolExecutor
    files: list[str] = field(default_factory=list[str])
    finishing: list[Future[None]] = field(default_factory=list[Future[None]])
    finished: set[int] = field(default_factory=set[int])

    def take_all(self) -> None:
        """Do every part that is neither done nor in other hands; the last files may still be on their way to the disk."""
        for number in self.left():
            journal = Journal.take(self.folding.stage, self.folding.identity, number)
            if journal is None:
                continue
            try:
                if journal.conclusion(self.session) is None:
                    self._do(self.parts[number], journal)
                    continue
            except BaseException:
                journal.close()
                raise
            journal.close()

    def finish(self) -> None:
        """Wait until what this process did is on the disk, and noted."""
        for future in self.finishing:
            future.result()
        self.finishing.clear()

    def left(self) -> list[int]:
        """The parts that nobody has finished."""
        for number in range(len(self.parts)):
            journal = journal_file(self.folding.stage, number)
            if number not in self.finished and conclusion(journal, self.session) is not None:
                self.finished.add(number)
        return [number for number in range(len(self.parts)) if number not in self.finished]

    def _do(self, part: Plan, journal: Journal) -> None:
        assert part.fold is not None
        names = [file.name for file in part.fold.files]
        self.took(names)
        weights, outcome = self.folding.fold(part, journal)
        self.finishing.append(self.finisher.submit(self._conclude, weights, outcome, journal))
        self.files.extend(names)

    def _conclude(self, weights: ModelWeights, outcome: Outcome, journal: Journal) -> None:
        try:
            weights.close()
            measured = {"in_flight": outcome.peak_in_flight, "anonymous": outcome.memory.most, "resumed": outcome.resumed}
            digests = {name: asdict(digest) for name, digest in weights.digests.items()}
            journal.conclude(self.session, {**measured, "notes": outcome.notes, "digests": digests})
        finally:
            journal.close()


def lead(folding: Folding, took: Took | None) -> Written:
    """Write a model in parts that others may help with, or what earlier processes left to do of it.

    In one piece where `took` is None, where the plan cannot be divided, and where the file system has no locks.

    Raises: what `Folding.write` raises.
    """
    _dismiss_helpers(folding)
    parts = divide(folding.plan) if took is not None else (folding.plan,)
    if took is None or len(parts) == 1:
        return folding.write()
    fold = folding.plan.fold
    assert fold is not None
    start = time.perf_counter()
    clear_around(folding.stage, fold)
    Journal(folding.stage, folding.identity).close()
    for number in range(len(parts)):
        Journal(folding.stage, folding.identity, number).close()
    try:
        _held_elsewhere(folding, 0)
    except OutputError:
        return folding.write()
    session = secrets.token_hex(8)
    with ThreadPoolExecutor(1, "rmkit-parts") as finisher, _announced(folding, session, len(parts)):
        crew = _Crew(folding, parts, session, took, finisher)
        while True:
            crew.take_all()
            crew.finish()
            if not crew.left():
                break
            time.sleep(POLL)
    outcome, digests = _join(folding, session, len(parts))
    outcome.seconds = time.perf_counter() - start
    write_around(folding.stage, fold)
    remove_journals(folding.stage)
    return Written(outcome, digests)


def help_with(folding: Folding, took: Took = lambda names: None) -> tuple[str, ...] | None:
    """Do parts of a fold that a leader has staged, until none is free; the names of the files written.

    None when no leader has made parts of it known.

    Raises: what `fold` raises, which the leader then meets too; OutputError where the file system has no locks.
    """
    announced = _read(folding.stage)
    if announced is None or announced.get("identity") != folding.identity:
        return None
    parts = divide(folding.plan)
    session = str(announced.get("session"))
    if len(parts) != announced.get("parts"):
        return None
    looked = time.monotonic()

    def observe(name: str, sites: int, nbytes: int) -> None:
        nonlocal looked
        if time.monotonic() - looked > POLL:
            looked = time.monotonic()
            if (_read(folding.stage) or {}).get("session") != session:
                raise _Over
        folding.observe(name, sites, nbytes)

    with ThreadPoolExecutor(1, "rmkit-parts") as finisher:
        crew = _Crew(replace(folding, observe=observe), parts, session, took, finisher)
        with contextlib.suppress(_Over):
            crew.take_all()
            crew.finish()
    return tuple(crew.files)


def _join(folding: Folding, session: str, count: int) -> tuple[Outcome, Mapping[str, FileDigest]]:
    """What was measured and hashed by all processes together."""
    ends = [conclusion(journal_file(folding.stage, number), session) or {} for number in range(count)]
    outcome = Outcome(
        peak_in_flight=max(end["in_flight"] for end in ends),
        resumed=sum(end["resumed"] for end in ends),
        memory=AnonymousPeak(max(end["anonymous"] for end in ends)),
        notes=[note for end in ends for note in end["notes"]],
    )
    journal = Journal(folding.stage, folding.identity)
    journal.close()
    conclude(folding.plan, journal.done, outcome)
    return outcome, {name: FileDigest(**digest) for end in ends for name, digest in end["digests"].items()}


# --- how processes find each other ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _announced(folding: Folding, session: str, count: int) -> Generator[None]:
    """Inside the block others can find the parts; at its end all of them have left."""
    path = folding.stage / _NAME
    scratch = folding.stage / f"{_NAME}-{session}"
    try:
        scratch.write_text(json.dumps({"identity": folding.identity, "session": session, "parts": count}))
        scratch.replace(path)
    except OSError as error:
        raise OutputError.from_os(error, path) from error
    try:
        yield
    finally:
        _dismiss_helpers(folding)


def _dismiss_helpers(folding: Folding) -> None:
    """Let nobody begin with a part, and wait for those who are at one to end their job."""
    count = (_read(folding.stage) or {}).get("parts", 0)
    (folding.stage / _NAME).unlink(missing_ok=True)
    deadline = time.monotonic() + LAST_JOB
    for number in range(count):
        while time.monotonic() < deadline and _held_elsewhere(folding, number):
            time.sleep(POLL)


def _held_elsewhere(folding: Folding, number: int) -> bool:
    journal = Journal.take(folding.stage, folding.identity, number)
    if journal is None:
        return journal_file(folding.stage, number).exists()
    journal.close()
    return False


def _read(stage: Path) -> Mapping[str, Any] | None:
    """What a leader has made known in a folder."""
    try:
        entry: Any = json.loads((stage / _NAME).read_text())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) else None

"""What of a folder is done: a line per finished job with the checksum of what it wrote, so that a killed run can go on.

Processes that share a fold keep a journal for each of its parts; who holds the lock of one does that part.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ..errors import OutputError

NAME = ".rmkit-journal"


class Journal:
    """A journal of a staged folder. `done` holds what is finished, by job, by this run and by earlier ones of the same identity
    and in whatever part.

    A line that a crash cut short does not count. Lines are appended from one thread.
    """

    def __init__(self, stage: Path, identity: str, part: int | None = None) -> None:
        """Raises: OutputError when the disk refuses."""
        path = journal_file(stage, part)
        if _identity(path) != identity:
            path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError.from_os(error, path) from error
        self._begin(path, handle, identity)

    @classmethod
    def take(cls, stage: Path, identity: str, part: int) -> Self | None:
        """The journal of a part that is there, for this process alone; None when another process has it, or it was removed.

        Raises: OutputError where the file system has no locks.
        """
        path = journal_file(stage, part)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError.from_os(error, path) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), path.stat()):
                raise FileNotFoundError(path)
        except (BlockingIOError, FileNotFoundError):
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            raise OutputError.from_os(error, path) from error
        journal = cls.__new__(cls)
        journal._begin(path, handle, identity)
        return journal

    def _begin(self, path: Path, handle: int, identity: str) -> None:
        self._path = path
        self._fd = handle
        self._lock = threading.Lock()
        self.done: dict[str, Mapping[str, Any]] = {}
        for each in sorted(path.parent.glob(f"{NAME}*")):
            if _identity(each) == identity:
                self.done |= _read(each, "job")
        # A line that was cut short must not swallow the next one.
        self._append({"again": True} if _identity(path) == identity else {"identity": identity}, b"\n")

    def add(self, job: str, record: Mapping[str, Any]) -> None:
        """Note that a job is done.

        Raises: OutputError when the disk refuses.
        """
        self._append({"job": job, **record})
        self.done[job] = record

    def conclude(self, session: str, record: Mapping[str, Any]) -> None:
        """Note that all of this journal's part is done and on the disk. session: stands for the run that knows its files.

        Raises: OutputError when the disk refuses.
        """
        self._append({"session": session, **record})

    def conclusion(self, session: str) -> Mapping[str, Any] | None:
        """What was noted at the end of this journal's part, None while it is not done."""
        return conclusion(self._path, session)

    def close(self) -> None:
        """Close the file and leave it; its lock is given back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, entry: Mapping[str, Any], before: bytes = b"") -> None:
        data = before + json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        try:
            with self._lock:
                while data:
                    data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise OutputError.from_os(error, self._path) from error


def journal_file(stage: Path, part: int | None = None) -> Path:
    """Where the journal of a folder lies, or that of a part."""
    return stage / (NAME if part is None else f"{NAME}-{part}")


def remove_journals(stage: Path) -> None:
    """The folder is complete: nothing is left to go on with."""
    for path in stage.glob(f"{NAME}*"):
        path.unlink(missing_ok=True)


def conclusion(path: Path, session: str) -> Mapping[str, Any] | None:
    """What the journal at `path` says its part ended with in this session, None while it is not done."""
    return _read(path, "session").get(session)


def journalled_identity(stage: Path) -> str | None:
    """The identity a staged folder was begun with, None where it keeps no journal."""
    return _identity(journal_file(stage))


def _identity(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                entry = _parse(line)
                if "identity" in entry:
                    return str(entry["identity"])
    except (OSError, ValueError):
        pass
    return None


def _read(path: Path, key: str) -> dict[str, Mapping[str, Any]]:
    """The lines of a journal that have a key, by its value; of several the last."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    entries = [_parse(line) for line in text.splitlines()]
    return {str(entry[key]): entry for entry in entries if key in entry}


def _parse(line: str) -> Mapping[str, Any]:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}

"""What of a folder is done: a line per finished job with the checksum of what it wrote, so that a killed run can go on."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError

NAME = ".rmkit-journal"


class Journal:
    """The journal of a staged folder. `done` holds what an earlier run with the same identity finished, by job.

    A line that a crash cut short does not count. Lines are appended from one thread.
    """

    def __init__(self, stage: Path, identity: str) -> None:
        self._path = stage / NAME
        self.done: dict[str, Mapping[str, Any]] = _read(self._path, identity)
        self._lock = threading.Lock()
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            # A line that was cut short must not swallow the next one.
            self._append({"identity": identity} if not self.done else {"again": True}, b"\n")
        except OSError as error:
            raise OutputError.from_os(error, self._path) from error

    def add(self, job: str, record: Mapping[str, Any]) -> None:
        """Note that a job is done.

        Raises: OutputError when the disk refuses.
        """
        try:
            with self._lock:
                self._append({"job": job, **record})
        except OSError as error:
            raise OutputError.from_os(error, self._path) from error

    def close(self) -> None:
        """Close the file and leave it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """The folder is complete: nothing is left to go on with."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _append(self, entry: Mapping[str, Any], before: bytes = b"") -> None:
        data = before + json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]


def journalled_identity(stage: Path) -> str | None:
    """The identity a staged folder was begun with, None where it keeps no journal."""
    try:
        with (stage / NAME).open(encoding="utf-8") as file:
            for line in file:
                entry = _parse(line)
                if "identity" in entry:
                    return str(entry["identity"])
    except (OSError, ValueError):
        pass
    return None


def _read(path: Path, identity: str) -> dict[str, Mapping[str, Any]]:
    if journalled_identity(path.parent) != identity:
        path.unlink(missing_ok=True)
        return {}
    done: dict[str, Mapping[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = _parse(line)
        if "job" in entry:
            done[str(entry["job"])] = entry
    return done


def _parse(line: str) -> Mapping[str, Any]:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}

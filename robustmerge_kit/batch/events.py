"""What happens in a batch, one JSON object a line, for programs that watch it."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import OutputError

SILENT = ("progress",)
"""Events that come too often to be kept."""


class EventFile:
    """Appends events to a file; a line is written at once and whole, so that several batches may share the file."""

    def __init__(self, path: Path) -> None:
        """Raises: OutputError when the file cannot be written."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutputError.from_os(error, path) from error

    def __call__(self, event: str, **fields: Any) -> None:
        """Note an event."""
        if event in SILENT:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": now, "event": event, **fields}, ensure_ascii=False)
        try:
            os.write(self._handle, f"{line}\n".encode())
        except OSError as error:
            raise OutputError.from_os(error, self._path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._handle)

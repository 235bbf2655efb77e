"""A Python function that scores folders, in processes that stay for all trials: what it has loaded is loaded once."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..recipe import PythonEvaluation
from .evaluate import Stopped, Subject, Unscored, end_group, finite

PACKAGE = Path(__file__).absolute().parents[2]
_POLL = 0.1


class Function:
    """Calls a function for every folder, in as many processes as there are trials at the same time."""

    def __init__(self, settings: PythonEvaluation, place: Path, log: Path) -> None:
        """Start the first process. log: where it says what is wrong while it imports.

        Raises: RecipeError when the function cannot be imported.
        """
        self.settings = settings
        self.place = place.absolute()
        self.log = log
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all: list[_Process] = []
        self._lock = threading.Lock()
        try:
            self._idle.put(self._start(threading.Event()))
        except Unscored as error:
            hint = "modules are looked for beside the recipe, in the working folder, and among the installed ones"
            raise RecipeError(str(error), where=f"sweep.evaluate.python: {settings.python}", hint=hint) from error

    def score(self, subject: Subject, stop: threading.Event) -> float:
        """The number that the function returns."""
        request = {
            "folder": str(subject.folder),
            "params": subject.params,
            "log": str(subject.log.with_suffix(".out")),
            "environment": subject.environment,
        }
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start(stop)
        try:
            answer = process.ask(request, self.settings.timeout, stop)
        except BaseException:
            self._end(process)
            raise
        self._idle.put(process)
        if "error" in answer:
            raise Unscored(answer["error"])
        return finite(answer["value"], "the function returned")

    def close(self) -> None:
        """End all processes."""
        for process in list(self._all):
            self._end(process)

    def _start(self, stop: threading.Event) -> _Process:
        process = _Process(self.settings.python, self.place, self.log)
        with self._lock:
            self._all.append(process)
        try:
            answer = process.hear(None, stop)
        except BaseException:
            self._end(process)
            raise
        if "error" in answer:
            self._end(process)
            raise Unscored(answer["error"])
        return process

    def _end(self, process: _Process) -> None:
        with self._lock:
            if process in self._all:
                self._all.remove(process)
        process.end()


class _Process:
    """One process with the function in it."""

    def __init__(self, spec: str, place: Path, log: Path) -> None:
        self._answers, theirs = os.pipe()
        self._heard = b""
        paths = [str(place), str(PACKAGE), str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                # run as a file: its package would import torch, which a function may not need
                [sys.executable, "-P", str(Path(__file__).with_name("entry_point.py")), spec, str(theirs)],
                cwd=place,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[theirs],
                start_new_session=True,
            )
        os.close(theirs)

    def ask(self, request: Mapping[str, Any], timeout: float | None, stop: threading.Event) -> dict[str, Any]:
        """The answer to a request."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which `hear` finds out
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self.hear(timeout, stop)

    def hear(self, timeout: float | None, stop: threading.Event) -> dict[str, Any]:
        """The next answer.

        Raises: Unscored when the time is over or the process has died, Stopped once `stop` is set.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._heard:
            if stop.is_set():
                raise Stopped
            if deadline is not None and time.monotonic() > deadline:
                raise Unscored(f"the function took more than {timeout:g} s")
            if select.select([self._answers], [], [], _POLL)[0]:
                part = os.read(self._answers, 1 << 16)
                if not part:
                    raise Unscored(f"the function's process died, exit code {self._process.wait()}")
                self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def end(self) -> None:
        """End the process, whatever it does."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        end_group(self._process)
        with contextlib.suppress(OSError):
            os.close(self._answers)

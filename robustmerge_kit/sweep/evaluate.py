"""What scores a merged folder: a command, or a Python function in processes of its own."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import RecipeError
from ..recipe import CommandEvaluation, Reading

TAIL = 1 << 16
"""Bytes at the end of stdout in which the number is looked for."""

_GRACE = 5.0
"""Seconds a command that is stopped has to clean up."""
_POLL = 0.05
_HOLE = re.compile(r"\{([a-z_]+)\}")
_HOLES = ("out", "work", "trial", "python")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)(?!\w)", re.IGNORECASE)


class Unscored(Exception):
    """A trial has failed; the reason is its message."""


class Stopped(Exception):
    """The sweep ends before the trial did."""


@dataclass(frozen=True)
class Subject:
    """A merged folder that is to be scored. work: the trial's own folder. log: where output goes, without a suffix."""

    number: int
    params: Mapping[str, Any]
    folder: Path
    work: Path
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a command or function finds in its environment."""
        return {"RMKIT_TRIAL": str(self.number), "RMKIT_PARAMS": json.dumps(self.params), "RMKIT_OUT": str(self.folder)}


class Evaluator(Protocol):
    """Scores folders, from several threads at a time."""

    def score(self, subject: Subject, stop: threading.Event) -> float:
        """The number of a merge.

        Raises: Unscored where there is none, Stopped once `stop` is set.
        """
        ...

    def close(self) -> None:
        """End what runs."""
        ...


class Command:
    """Runs a command for every folder, in the folder `place`."""

    def __init__(self, settings: CommandEvaluation, place: Path) -> None:
        """Check what can be checked without running it.

        Raises: RecipeError for a line that cannot be split, an unknown {name}, a program that is not there.
        """
        self.settings = settings
        self.place = place.absolute()
        try:
            given = settings.command
            self.words = shlex.split(given) if isinstance(given, str) else list(given)
        except ValueError as error:
            raise _refused("command", f"cannot be split into words: {error}") from error
        if not self.words:
            raise _refused("command", "is empty")
        files = [settings.value.file] if settings.value else []
        for name in (name for word in (*self.words, *files) for name in _HOLE.findall(word)):
            if name not in _HOLES:
                known = ", ".join(f"{{{each}}}" for each in _HOLES)
                raise _refused("command", f"{{{name}}} stands for nothing", hint=f"there are {known}")
        program = _HOLE.sub(lambda hole: sys.executable if hole[1] == "python" else hole[0], self.words[0])
        beside = (self.place / program).is_file() and os.access(self.place / program, os.X_OK)
        if not (beside if "/" in program else shutil.which(program)):
            hint = "name a program on PATH, a path from the recipe's folder, or {python}"
            raise _refused("command", f"there is no program {program!r}", hint=hint)

    def score(self, subject: Subject, stop: threading.Event) -> float:
        """The number that the command prints or writes."""
        holes = {"out": str(subject.folder), "work": str(subject.work), "trial": str(subject.number), "python": sys.executable}
        words = [_HOLE.sub(lambda hole: holes[hole[1]], word) for word in self.words]
        out, err = subject.log.with_suffix(".out"), subject.log.with_suffix(".err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            try:
                process = subprocess.Popen(
                    words,
                    cwd=self.place,
                    env={**os.environ, **subject.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
            except OSError as error:
                raise Unscored(f"{words[0]} cannot be started: {error.strerror}") from error
            code = self._wait(process, stop)
        if code:
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise Unscored(f"the command {ended}{_last_line(err)}")
        if self.settings.value is not None:
            return read_number(self.settings.value, holes, subject.work)
        return last_number(_tail(out))

    def close(self) -> None:
        """Nothing outlives a trial."""

    def _wait(self, process: subprocess.Popen[bytes], stop: threading.Event) -> int:
        limit = self.settings.timeout
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            try:
                return process.wait(_POLL)
            except subprocess.TimeoutExpired:
                pass
            if stop.is_set():
                end_group(process)
                raise Stopped
            if deadline is not None and time.monotonic() > deadline:
                end_group(process)
                raise Unscored(f"the command took more than {limit:g} s")


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that runs, and all it has started: kindly first."""
    if process.returncode is not None:
        return
    for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


# --- numbers --------------------------------------------------------------------------------------------------------------


def last_number(text: str) -> float:
    """The last number of a text.

    Raises: Unscored where there is none, or it is not finite.
    """
    found = _NUMBER.findall(_COLOUR.sub("", text))
    if not found:
        raise Unscored("the command printed no number")
    return finite(float(found[-1]), "the command printed")


def read_number(reading: Reading, holes: Mapping[str, str], work: Path) -> float:
    """The number at a key of a JSON file; of a pattern, of the newest file.

    Raises: Unscored.
    """
    pattern = work / _HOLE.sub(lambda hole: holes[hole[1]], reading.file)
    fixed = Path(*(part for part in pattern.parts[: _first_magic(pattern)]))
    rest = pattern.relative_to(fixed).as_posix()
    matches = [path for path in fixed.glob(rest) if path.is_file()] if rest != "." else [fixed]
    try:
        newest = max(matches, key=lambda path: path.stat().st_mtime_ns, default=pattern)
        data = json.loads(newest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise Unscored(f"no number in {pattern}: {reason}") from error
    value = _follow(data, reading.key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unscored(f"{newest.name} holds no number at {reading.key!r}, but {_shown(value)}")
    return finite(float(value), f"{newest.name} holds")


def finite(value: float, said: str) -> float:
    """The number itself.

    Raises: Unscored for NaN and infinities.
    """
    if not math.isfinite(value):
        raise Unscored(f"{said} {value}")
    return value


def _first_magic(pattern: Path) -> int:
    return next((i for i, part in enumerate(pattern.parts) if re.search(r"[*?\[]", part)), len(pattern.parts))


def _follow(data: Any, key: str | Sequence[str | int] | None) -> Any:
    """What is at a way into JSON data, None where there is nothing; of names with dots, those that are there count."""
    if key is None:
        return data
    if isinstance(key, str):
        if isinstance(data, dict) and key in data:
            return data[key]
        places = [i for i, letter in enumerate(key) if letter == "."]
        found = (_follow(_follow(data, [key[:i]]), key[i + 1 :]) for i in places)
        step = [int(key)] if key.isdigit() else None
        return next((each for each in found if each is not None), _follow(data, step) if step else None)
    for step in key:
        if isinstance(data, dict) and step in data:
            data = data[step]
        elif isinstance(data, list) and str(step).isdigit() and int(step) < len(data):
            data = data[int(step)]
        else:
            return None
    return data


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().decode(errors="replace")


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in _tail(path).splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""


def _refused(key: str, what: str, hint: str = "") -> RecipeError:
    return RecipeError(what, where=f"sweep.evaluate.{key}", hint=hint)

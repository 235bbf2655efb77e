"""A whole batch: find the jobs, start an engine, run the course, write down what has become of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import OutputError
from .events import EventFile
from .jobs import find_jobs
from .schedule import Course, Engine, Settings, Tell
from .summary import summarize, write_summary


class Running(Engine, Protocol):
    """An engine that is up. peak: bytes its processes took at most, 0: not known. budget: what they may take, if known."""

    peak: int

    @property
    def budget(self) -> int | None: ...

    def close(self) -> None:
        """End the workers."""
        ...


StartEngine = Callable[[int, Path], Running]
"""Called with the number of jobs and the folder for what workers say."""


def run_batch(
    recipes: Sequence[str],
    start_engine: StartEngine,
    *,
    settings: Settings | None = None,
    variables: Mapping[str, str] | None = None,
    out: Path | None = None,
    state: Path = Path("rmkit-batch"),
    events: Path | None = None,
    tell: Tell = lambda event, **fields: None,
) -> dict[str, Any]:
    """Merge many recipes; the summary says what has become of each.

    recipes: files, folders, patterns, references, matrices. variables: values for the vars of all of them. state: folder for
    logs, summary.json and hashes of inputs; what is done is told by the outputs themselves, not by it. events: file for one
    JSON object per event.

    Raises: UsageError for arguments that stand for nothing, OutputError when state or events cannot be written. What is wrong
        with single recipes is not raised.
    """
    start = time.monotonic()
    logs = state / "logs"
    jobs, broken = find_jobs(recipes, out, logs.absolute(), variables)
    with contextlib.ExitStack() as stack:
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError.from_os(error, state) from error
        listeners: list[Tell] = [tell]
        if events is not None:
            listeners.append(stack.enter_context(EventFile(events)))

        def tell_all(event: str, **fields: Any) -> None:
            for listener in listeners:
                listener(event, **fields)

        tell_all("batch", jobs=len(jobs))
        settings = replace(settings or Settings(), digests=(state / "digests").absolute())
        engine = start_engine(len(jobs), logs)
        stack.callback(engine.close)
        course = Course(jobs, engine, settings, tell_all, broken)
        course.run()
        seconds = time.monotonic() - start
        summary = summarize(course.entries, seconds, engine.peak, engine.budget, state, settings.only_check)
        tell_all("end", ok=summary["ok"], counts=summary["counts"], seconds=summary["seconds"])
    write_summary(summary, state / "summary.json")
    return summary

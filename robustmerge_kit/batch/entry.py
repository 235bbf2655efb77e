"""A job on its way through a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .tasks import Checked, Failure, Job

Status = Literal["waiting", "running", "done", "skipped", "failed", "stopped"]


@dataclass
class Entry:
    """A job and what has become of it. attempts: how often it was tried, at checking and merging together the most.

    shared: it runs, and others may do parts of it, at most `most_helpers` at a time. progress: sites done, by number of task.
    """

    number: int
    job: Job
    status: Status = "waiting"
    checked: Checked | None = None
    failure: Failure | None = None
    attempts: int = 0
    started: float = 0.0
    seconds: float = 0.0
    sites: int = 0
    nbytes: int = 0
    history: list[str] = field(default_factory=list[str])
    shared: bool = False
    most_helpers: int = 0
    progress: dict[int, int] = field(default_factory=dict[int, int])

    def begin_sharing(self, shared: bool) -> None:
        """It starts to run: others may do parts of it, or not."""
        self.shared = shared
        self.most_helpers = self.checked.parts - 1 if self.checked else 0
        self.progress.clear()

    @property
    def needs(self) -> int:
        """Bytes of its largest step, 0 while they are not known."""
        return self.checked.needs if self.checked else 0

    @property
    def target(self) -> Path:
        """Its output; it has been checked."""
        assert self.checked is not None
        return self.checked.target

"""What passes between a batch and its workers; plain data, light to import and to send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..recipe import Variant


@dataclass(frozen=True)
class Job:
    """One recipe to merge. `recipe` is what the user typed, `variant` is set for a recipe of a matrix.

    settings: values for the recipe's vars. out: the output folder, where the recipe does not name it. log: the file that tells
    what happens to this job.
    """

    name: str
    recipe: str
    variant: Variant | None = None
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    out: Path | None = None
    log: Path | None = None


@dataclass(frozen=True)
class Share:
    """What of a machine one task may use; see `resources.Resources`."""

    threads: int = 1
    memory: int = 512 << 20
    device: str = "cpu"
    gpu_memory: int | None = None


@dataclass(frozen=True)
class Task:
    """One thing to do about a job: `check` it (headers only), `merge` it, or `help` with its merge, which runs elsewhere.

    number: of a check or merge the job's position in the batch. restart: merge even what is done. shared: others may help.
    digests: folder that processes share the hashes of inputs in.
    """

    number: int
    kind: Literal["check", "merge", "help"]
    job: Job
    share: Share = Share()
    attempt: int = 1
    overwrite: bool = False
    restart: bool = False
    card: bool = True
    shared: bool = False
    digests: Path | None = None
    folder: Path | None = None

    @property
    def apart(self) -> int:
        """Bytes to leave free: the allocator keeps something for threads, which come and go with the parts of a merge."""
        return 128 << 20 if self.shared and self.kind != "check" else 0


@dataclass(frozen=True)
class Checked:
    """A job that can be merged. `done`: its output is there already; `needs`: bytes of its largest step in memory.

    parts: groups of output files that can be written apart.
    """

    target: Path
    done: bool
    sites: int
    reads: int
    writes: int
    needs: int
    inputs: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    parts: int = 1


@dataclass(frozen=True)
class Merged:
    """A job whose output is there. `skipped`: it was there before."""

    target: Path
    skipped: bool
    sites: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Helped:
    """A merge whose parts are all done or in hands. files: those that this task wrote."""

    target: Path
    files: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A task that went wrong. `transient`: it may go right another time; `busy`: another process is writing the output."""

    problems: tuple[Mapping[str, str], ...]
    exit_code: int
    transient: bool = False
    busy: bool = False

    @property
    def reason(self) -> str:
        """The first problem in one line."""
        first = self.problems[0]
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        return f"{first['where']}: {first['what']}".removeprefix(": ") + more


Result = Checked | Merged | Helped | Failure


@dataclass(frozen=True)
class Finished:
    """A task came to its end, with a result."""

    number: int
    result: Result


@dataclass(frozen=True)
class Lost:
    """The process that carried out a task died."""

    number: int
    why: str


@dataclass(frozen=True)
class Progress:
    """A merge proceeds; sites done so far."""

    number: int
    sites: int


Happening = Finished | Lost | Progress

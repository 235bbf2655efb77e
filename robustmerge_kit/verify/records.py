"""What a verification found: one check per tensor or site, findings about files, and all of it as a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CheckedBy = Literal["independent", "own code in float64", "own code as merged", "bytes"]
"""How the expected numbers were made: without any code of the merge, or by the method's own code where no other exists."""

Observe = Callable[[str, int, int], None]
"""Called as work proceeds: name of the tensor or site, 1, bytes read."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was recorded. `where` is a file or a tensor."""

    where: str
    what: str


@dataclass(frozen=True)
class Check:
    """One site or tensor.

    error: ||found - expected|| / ||expected||, without what the rank limit takes away. allowed: the largest error that rounding
    explains. limited: the share ||D - D_k|| / ||D|| that the best approximation of the written rank lacks.
    worst: the largest deviation of one number as a share of what it may deviate by; 0 where single numbers are not bounded.
    undecided: numbers on which float32 and float64 may decide differently: whether they are kept, which sign wins.
    problem: what is off, None when nothing is.
    """

    name: str
    method: str | None
    by: CheckedBy
    entries: int
    error: float
    allowed: float
    worst: float = 0.0
    undecided: int = 0
    problem: str | None = None
    limited: float = 0.0


@dataclass(frozen=True)
class Report:
    """The outcome. sites, tensors: how many there are besides how many were `checks`. covered: files that were hashed."""

    folder: Path
    kind: Literal["adapter", "model"]
    files: int
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]
    sites: int
    tensors: int
    seconds: float
    memory: int
    notes: tuple[str, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Everything that is off, files first."""
        return (*self.findings, *(Finding(check.name, check.problem) for check in self.checks if check.problem))

    @property
    def good(self) -> bool:
        return not self.problems

    @property
    def worst(self) -> Check | None:
        """The site with the largest relative error."""
        return max((check for check in self.checks if check.method), key=lambda check: check.error, default=None)

"""What a study knows of its trials, as plain records; and the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["complete", "failed", "running"]


@dataclass(frozen=True)
class Trial:
    """One merge of a sweep. `drawn`: its values by axis, as the study holds them; `params`: as they stand in its recipe.

    score: None unless complete. reason: why it failed. parts: further figures of a complete one. seconds: what merging and
    scoring took.
    """

    number: int
    state: State
    drawn: Mapping[str, Any] = field(default_factory=dict[str, Any])
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    score: float | None = None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    merge_seconds: float = 0.0
    score_seconds: float = 0.0


def best_of(trials: Sequence[Trial], maximize: bool) -> Trial | None:
    """The complete trial with the best score, the first of equal ones."""
    found: Trial | None = None
    for trial in sorted(trials, key=lambda each: each.number):
        if trial.score is not None and (found is None or better(trial.score, found.score or 0.0, maximize)):
            found = trial
    return found


def better(one: float, other: float, maximize: bool) -> bool:
    """Whether a score beats another."""
    return one > other if maximize else one < other


def is_stale(trials: Sequence[Trial], maximize: bool, patience: int | None) -> bool:
    """Whether the last `patience` trials that ended were no better than the best before them; failures count as no better."""
    ended = sorted((trial for trial in trials if trial.state != "running"), key=lambda each: each.number)
    best, since = -math.inf if maximize else math.inf, 0
    for trial in ended:
        if trial.score is not None and better(trial.score, best, maximize):
            best, since = trial.score, 0
        elif math.isfinite(best):
            since += 1
    return patience is not None and since >= patience

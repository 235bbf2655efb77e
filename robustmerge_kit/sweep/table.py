"""A sweep as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..report.columns import NONE, shorten, table
from .run import Result
from .trials import Trial

MOST = 20
"""Trials in the table; all are in the JSON."""

_CELL = 28


def lines(result: Result) -> list[str]:
    """The best trials, what failed and why, the best recipe."""
    complete = sorted(
        (trial for trial in result.trials if trial.score is not None),
        key=lambda trial: (-1 if result.maximize else 1) * (trial.score or 0.0),
    )
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.params))
    rows = [[str(trial.number), figure(trial.score), *(_cell(trial, name) for name in names)] for trial in complete[:MOST]]
    found = table(["trial", "score", *names], rows) if rows else []
    if len(complete) > MOST:
        found.append(f"and {len(complete) - MOST} more, see --json")
    failures = Counter(trial.reason for trial in result.trials if trial.state == "failed")
    for reason, count in failures.most_common(5):
        first = next(trial.number for trial in result.trials if trial.reason == reason)
        found.append(f"{count} failed, the first of them trial {first}: {shorten(reason, 200)}")
    found += ["", f"{len(complete)} trials scored; {result.why}"]
    if result.best is not None:
        seconds = [trial.merge_seconds for trial in complete]
        found.append(f"a trial took {sum(seconds) / len(seconds):.2g} s without its evaluation, on average")
        found.append(f"best: trial {result.best.number}, score {figure(result.best.score)}: {result.best_recipe}")
    return found


def document(result: Result) -> dict[str, Any]:
    """The whole result, for --json."""
    best = result.best
    return {
        "state": str(result.state),
        "why": result.why,
        "direction": "maximize" if result.maximize else "minimize",
        "best": None if best is None else {"trial": best.number, "score": best.score, "recipe": str(result.best_recipe)},
        "trials": [_record(trial) for trial in result.trials],
    }


def told(trial: Trial, best: Trial | None) -> str:
    """A finished trial in one line."""
    values = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
    if trial.score is None:
        return f"trial {trial.number}: failed: {shorten(trial.reason, 200)}; {values}"
    mark = "best" if best is not None and best.number == trial.number else f"best {figure(best.score if best else None)}"
    return f"trial {trial.number}: {figure(trial.score)} ({mark}); {values}"


def figure(value: float | None) -> str:
    """A score in five digits."""
    return NONE if value is None else f"{value:.5g}"


def _cell(trial: Trial, name: str) -> str:
    return _short(trial.params[name]) if name in trial.params else NONE


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return shorten(value if isinstance(value, str) else json.dumps(value), _CELL)


def _record(trial: Trial) -> Mapping[str, Any]:
    known: dict[str, Any] = {"trial": trial.number, "state": trial.state, "score": trial.score, "params": dict(trial.params)}
    if trial.reason:
        known["reason"] = trial.reason
    if trial.parts:
        known["parts"] = dict(trial.parts)
    return {**known, "merge_seconds": trial.merge_seconds, "score_seconds": trial.score_seconds}

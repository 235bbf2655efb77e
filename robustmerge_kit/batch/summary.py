"""What has become of a batch: as JSON, and in a few lines for a human."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .entry import Entry

STATES = ("done", "skipped", "failed", "stopped", "waiting")


def summarize(
    entries: Sequence[Entry], seconds: float, peak: int, budget: int | None, state: Path, only_check: bool = False
) -> dict[str, Any]:
    """The summary, as `--json` prints it. `ok`: all outputs are there, or with `only_check` could be made."""
    good = ("done", "skipped", "waiting") if only_check else ("done", "skipped")
    return {
        "ok": all(entry.status in good for entry in entries),
        "only_check": only_check,
        "counts": {state: sum(entry.status == state for entry in entries) for state in STATES},
        "seconds": round(seconds, 3),
        "memory": {"peak": peak or None, "budget": budget},
        "state": str(state),
        "jobs": [_job(entry) for entry in entries],
    }


def _job(entry: Entry) -> dict[str, Any]:
    target = entry.checked.target if entry.checked else None
    return {
        "name": entry.job.name,
        "recipe": entry.job.recipe,
        "status": entry.status,
        "output": str(target) if target else None,
        "seconds": round(entry.seconds, 3),
        "attempts": entry.attempts,
        "retried_because": entry.history,
        "exit_code": entry.failure.exit_code if entry.failure else None,
        "errors": list(entry.failure.problems) if entry.failure else [],
        "log": str(entry.job.log) if entry.job.log else None,
    }


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary for a human: what failed and why, what was not run, then the count."""
    found: list[str] = []
    for job in summary["jobs"]:
        if job["status"] == "failed":
            found.append(f"failed   {job['name']}  (log: {job['log']})")
            for error in job["errors"]:
                found.append(f"         {error['where']}: {error['what']}".replace("         : ", "         "))
                if error["hint"]:
                    found.append(f"         hint: {error['hint']}")
        elif job["status"] == "stopped":
            found.append(f"stopped  {job['name']}")
        elif job["status"] == "waiting":
            found.append(f"to do    {job['name']}: {job['output']}" if summary["only_check"] else f"not run  {job['name']}")
    left = "to do" if summary["only_check"] else "not run"
    words = {"done": "done", "skipped": "done before", "failed": "failed", "stopped": "stopped", "waiting": left}
    counts = [f"{count} {words[state]}" for state, count in summary["counts"].items() if count]
    total = f"{len(summary['jobs'])} recipes: {', '.join(counts)}; {summary['seconds']:.1f} s"
    if summary["memory"]["peak"]:
        total += f", peak memory {summary['memory']['peak'] / 1e6:.0f} MB"
        if summary["memory"]["budget"]:
            total += f" of {summary['memory']['budget'] / 1e6:.0f} MB"
    return [*found, total]


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """The summary as a file, whole or not at all.

    Raises: OutputError.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise OutputError.from_os(error, path) from error

"""A verification as text and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from ..disclosure import printable
from .records import Check, Report

SHOWN = 20
"""Problems that are shown without -v."""


def as_json(report: Report) -> dict[str, Any]:
    """Everything, for programs; infinite errors are None."""
    return {
        "good": report.good,
        "folder": str(report.folder),
        "kind": report.kind,
        "files": report.files,
        "problems": [{"where": finding.where, "what": finding.what} for finding in report.problems],
        "checked": {"sites": _count(report, sites=True), "tensors": _count(report, sites=False)},
        "of": {"sites": report.sites, "tensors": report.tensors},
        "largest_error": _finite(report.worst.error) if report.worst else None,
        "worst_site": report.worst.name if report.worst else None,
        "seconds": report.seconds,
        "peak_anonymous": report.memory,
        "notes": list(report.notes),
        "checks": [_check(check) for check in report.checks],
    }


def as_text(report: Report, *, verbose: bool) -> list[str]:
    """Lines for people: the answer last."""
    lines = [f"{printable(finding.where)}: {printable(finding.what)}" for finding in report.problems]
    if not verbose and len(lines) > SHOWN:
        lines = [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more"]
    if verbose and report.checks:
        lines = [*_table(report), *lines]
    lines.append(f"{'files':<12}{report.files} against the hashes of the receipt")
    if report.checks:
        sites, tensors = _count(report, sites=True), _count(report, sites=False)
        lines.append(f"{'computed':<12}{sites} of {report.sites} sites, {tensors} of {report.tensors} other tensors")
        ways = Counter(check.by for check in report.checks if check.method)
        lines.append(f"{'checked by':<12}{', '.join(f'{way} ({count})' for way, count in sorted(ways.items()))}")
        undecided, entries = (sum(getattr(check, key) for check in report.checks) for key in ("undecided", "entries"))
        if undecided:
            lines.append(f"{'undecided':<12}{undecided} of {entries} numbers hang on float32 rounding")
    if report.worst is not None:
        worst = report.worst
        lines.append(f"{'worst':<12}{worst.error:.2e} relative error at {printable(worst.name)}, allowed {worst.allowed:.2e}")
    lines.append(f"{'took':<12}{report.seconds:.1f} s, {report.memory / 1e6:.0f} MB")
    lines.append("good" if report.good else f"{len(report.problems)} problems")
    return lines


def _table(report: Report) -> list[str]:
    width = max(len(check.name) for check in report.checks)
    head = f"{'tensor or site':<{width}}  {'error':>9}  {'allowed':>9}  {'worst':>6}  checked by"
    return [head, *(_row(check, width) for check in report.checks), ""]


def _row(check: Check, width: int) -> str:
    mark = "" if check.problem is None else "  OFF"
    return (
        f"{printable(check.name):<{width}}  {check.error:>9.2e}  {check.allowed:>9.2e}  {check.worst:>6.2f}  {check.by}{mark}"
    )


def _check(check: Check) -> dict[str, Any]:
    return {
        "name": check.name,
        "method": check.method,
        "checked_by": check.by,
        "entries": check.entries,
        "error": _finite(check.error),
        "allowed": _finite(check.allowed),
        "rank_limit": _finite(check.limited),
        "worst_share": _finite(check.worst),
        "undecided": check.undecided,
        "problem": check.problem,
    }


def _count(report: Report, *, sites: bool) -> int:
    return sum((check.method is not None) == sites for check in report.checks)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""The short table of docs/quality.md: drawn from the same scores as RESULTS.md, so that the page never says anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from results import table

from .summary import Line, Summary

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quality.md"
BEST = 5


def write_findings(modality: str, summary: Summary, lines: Sequence[Line], page: Path = PAGE) -> None:
    """Replace the modality's part of the page: RobustMerge's variants beside the best of the others on seen tasks."""
    begin, end = f"<!-- quality {modality}: begin -->", f"<!-- quality {modality}: end -->"
    before, found, rest = page.read_text().partition(begin)
    if not found:
        raise SystemExit(f"{page}: no line {begin}")
    page.write_text(f"{before}{begin}\n{short_table(summary, lines)}\n{end}{rest.partition(end)[2]}")


def short_table(summary: Summary, lines: Sequence[Line]) -> str:
    """Zero-shot, the best of the other methods, then RobustMerge's variants."""
    zero = summary.ledger.zero_shot()
    assert zero is not None
    others = sorted((line for line in lines if not _robust(line)), key=lambda line: -line.full.seen.mean)
    body = [["zero-shot", "", f"{zero.mean(summary.seen):.3f}"[1:], f"{zero.mean(summary.unseen):.3f}"[1:], ""]]
    body += [
        [line.name, line.chosen.words, line.full.seen.words, line.full.unseen.words, line.cut.seen.words]
        for line in (*others[:BEST], *(line for line in lines if _robust(line)))
    ]
    return table(("merged by", "setting", "seen", "unseen", "seen, cut to rank 16"), body)


def _robust(line: Line) -> bool:
    return line.name.startswith("robustmerge")

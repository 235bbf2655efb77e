"""An analysis as text of at most 100 columns: who takes part, every pair, every method, the verdict."""

from __future__ import annotations

import textwrap
from statistics import median

from ..columns import NONE, WIDTH, number, table
from .records import Analysis, Direction

MOST_PAIRS = 15
"""Pairs that are listed; of more, those with the largest |cosine| or overlap."""


def as_text(analysis: Analysis) -> list[str]:
    """The lines."""
    lines = _adapters(analysis)
    if analysis.totals.pairs:
        lines += ["", *_pairs(analysis)]
    for index in range(len(analysis.methods)):
        lines += ["", *_method(analysis, index)]
    return [*lines, "", *_verdict(analysis)]


def _adapters(analysis: Analysis) -> list[str]:
    head = ("", "adapter", "sites", "rank", "norm", "eff. rank", "largest", "median", "pruned", "scaled")
    rows: list[tuple[str, ...]] = []
    for index, (facts, update) in enumerate(zip(analysis.adapters, analysis.totals.updates, strict=True), 1):
        if update is None:
            rows.append((str(index), facts.label, "no update"))
            continue
        rows.append(
            (
                str(index),
                facts.label,
                str(facts.sites),
                str(update.rank),
                number(update.norm),
                number(update.effective_rank),
                number(update.spectrum[0]),
                number(median(update.spectrum)),
                number(update.pruned[0] if update.pruned else None),
                number(update.scaled[0] if update.scaled else None),
            )
        )
    return table(head, rows, left=(1,), shrink=1)


def _pairs(analysis: Analysis) -> list[str]:
    head = ("pair", "cosine", "norms", "overlap left", "right", "angle left", "right", "shared", "", "signs")
    pairs = analysis.totals.pairs
    shown = sorted(pairs, key=lambda pair: -max(abs(pair.cosine or 0.0), *(s.overlap for s in (pair.left, pair.right) if s)))
    kept = [pair for pair in pairs if pair in shown[:MOST_PAIRS]]
    rows = [
        (
            f"{pair.first + 1} {pair.second + 1}",
            _signed(pair.cosine),
            number(pair.norm_ratio),
            *(number(side.overlap if side else None) for side in (pair.left, pair.right)),
            *(f"{side.smallest:.0f}°" if side else NONE for side in (pair.left, pair.right)),
            _percent(pair.shared_first),
            _percent(pair.shared_second),
            _percent(pair.sign_conflict),
        )
        for pair in kept
    ]
    lines = table(head, rows, left=(0,))
    return [*lines, f"{len(pairs) - len(kept)} more pairs overlap less"] if len(kept) < len(pairs) else lines


def _method(analysis: Analysis, index: int) -> list[str]:
    facts, merge = analysis.methods[index], analysis.totals.merges[index]
    said = [
        f"rank {number(merge.rank)}",
        f"norm {number(merge.norm)}",
        f"kept {merge.kept:.2%}",
        f"invented {merge.invented:.1%}",
    ]
    if merge.known < 1 - 1e-6:
        said.append(f"seen {merge.known:.1%}")
    if facts.mixed:
        said.append("other methods at some sites")
    title = f"{facts.label} in {facts.space}" if facts.space else facts.label
    lines = textwrap.wrap(f"{title}: {', '.join(said)}", WIDTH, break_long_words=False)
    head = ("", "cosine", "projection", "crosstalk", "destroyed", "top left", "right", "ratio", "rest left", "right", "ratio")
    rows = [
        (
            str(place),
            _signed(task.cosine),
            *map(number, (task.projection, task.crosstalk)),
            _percent(task.destroyed),
            *_direction(task.top),
            *_direction(task.rest),
        )
        if task
        else (str(place), "no update")
        for place, task in enumerate(merge.tasks, 1)
    ]
    return [*lines, *table(head, rows)]


def _direction(found: Direction | None) -> tuple[str, str, str]:
    if found is None:
        return NONE, NONE, NONE
    return f"{found.left:.2f}", f"{found.right:.2f}", number(found.ratio)


def _verdict(analysis: Analysis) -> list[str]:
    lines = ["verdict"]
    for found in analysis.verdict:
        head = f"   {found.level:<9}"
        rest = " " * len(head)
        wrapped = textwrap.wrap(found.sentence, WIDTH - len(head), break_on_hyphens=False, break_long_words=False)
        lines += [(head if i == 0 else rest) + line for i, line in enumerate(wrapped)]
    return lines


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value + 0.0:.3f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"

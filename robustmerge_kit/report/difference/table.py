"""A comparison as text of at most 100 columns: what differs most first, then the totals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..columns import NONE, number, table
from .records import Comparison, Difference, Side, Totals

_COUNTED = {
    "equal": "equal",
    "different": "differ",
    "only in A": "only in A",
    "only in B": "only in B",
    "other shape": "of other shape",
}


def as_text(found: Comparison, *, top: int, tolerance: float | None = None) -> list[str]:
    """The lines; `top` rows of each table, those that differ most."""
    lines = [f"{side}  {each.reference} ({each.layout})" for side, each in (("A", found.a), ("B", found.b))]
    if found.sites:
        lines += ["", *_section("site", found.sites, _SITE_HEAD, [_site_row(each) for each in found.sites], top)]
    if found.tensors:
        lines += ["", *_section("tensor", found.tensors, _TENSOR_HEAD, [_tensor_row(each) for each in found.tensors], top)]
    if tolerance is not None:
        lines += ["", _verdict(found, tolerance)]
    return lines


_SITE_HEAD = ("site", "out x in", "error", "cosine", "|B|/|A|", "rank A", "rank B", "rank B-A")
_TENSOR_HEAD = ("tensor", "shape", "dtype", "error", "cosine", "|B|/|A|", "rank B-A")


def _section(
    noun: str, differences: Sequence[Difference], head: Sequence[str], rows: Sequence[Sequence[str]], top: int
) -> list[str]:
    totals = Totals.of(differences)
    counts = ", ".join(f"{count} {_COUNTED[status]}" for status, count in totals.counts.items() if count)
    lines = [f"{len(differences)} {noun}{'s' if len(differences) > 1 else ''}: {counts}"]
    unequal = len(differences) - totals.counts["equal"]
    shown = rows[: min(top, unequal)]
    if shown:
        lines += ["   " + line for line in table(head, shown, left=(0,), shrink=0, width=97)]
    if unequal > len(shown):
        lines.append(f"   {unequal - len(shown)} more differ, see --top")
    if unequal and totals.figures.a2 + totals.figures.b2:
        figures = totals.figures
        lines.append(
            f"   together: error {_error(figures.relative_error)}, cosine {_cosine(figures.cosine)}, "
            f"|B|/|A| {_ratio(figures.norm_ratio)}"
        )
    return lines


def _site_row(each: Difference) -> tuple[str, ...]:
    figures, ranks = each.figures, each.ranks
    side = each.a or each.b
    assert figures is not None
    assert ranks is not None
    assert side is not None
    return (
        each.name,
        _shape(side),
        each.status if each.status.startswith("only") else _error(each.relative_error),
        _cosine(figures.cosine),
        _ratio(figures.norm_ratio) if each.a else NONE,
        *(NONE if rank is None else str(rank) for rank in (ranks.a, ranks.b)),
        str(ranks.difference),
    )


def _tensor_row(each: Difference) -> tuple[str, ...]:
    head = (each.name, _both(each, _shape), _both(each, lambda side: side.dtype))
    if each.figures is None:
        return (*head, each.status, NONE, NONE, NONE)
    error = f"{each.not_finite} not finite" if each.not_finite else _error(each.relative_error)
    rank = str(each.ranks.difference) if each.ranks else NONE
    return (*head, error, _cosine(each.figures.cosine), _ratio(each.figures.norm_ratio), rank)


def _shape(side: Side) -> str:
    return " x ".join(map(str, side.shape)) or "scalar"


def _both(each: Difference, show: Callable[[Side], str]) -> str:
    shown = [show(side) for side in (each.a, each.b) if side is not None]
    return " / ".join(dict.fromkeys(shown))


def _error(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.2e}" if 0 < value < 1e-3 else number(value)


def _cosine(value: float | None) -> str:
    return NONE if value is None else f"{value:.6f}"


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _verdict(found: Comparison, tolerance: float) -> str:
    beyond = found.beyond(tolerance)
    if not beyond:
        return f"within the tolerance {tolerance:g}"
    noun = "sites and tensors" if found.sites and found.tensors else "sites" if found.sites else "tensors"
    count = len(found.sites) + len(found.tensors)
    return f"beyond the tolerance {tolerance:g}: {len(beyond)} of {count} {noun}, first {beyond[0].name}"

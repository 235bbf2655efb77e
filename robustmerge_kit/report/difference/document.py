"""A comparison as one JSON document; figures that are not defined are null."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .records import Comparison, Difference, Figures, Operand, Side, Totals


def as_json(found: Comparison, tolerance: float | None = None) -> dict[str, Any]:
    """The document, with every site and every tensor, those that differ most first."""
    return {
        "kind": found.kind,
        "a": _operand(found.a),
        "b": _operand(found.b),
        "tolerance": tolerance,
        "within": None if tolerance is None else not found.beyond(tolerance),
        "beyond": None if tolerance is None else [each.name for each in found.beyond(tolerance)],
        "totals": {"sites": _totals(found.sites), "tensors": _totals(found.tensors)},
        "sites": [{"site": each.name, **_site(each)} for each in found.sites],
        "tensors": [{"tensor": each.name, **_tensor(each)} for each in found.tensors],
        "notes": list(found.notes),
    }


def _operand(each: Operand) -> dict[str, Any]:
    return {"reference": each.reference, "name": each.label, "format": each.layout}


def _totals(differences: Sequence[Difference]) -> dict[str, Any]:
    totals = Totals.of(differences)
    counts = {status.replace(" ", "_").lower(): count for status, count in totals.counts.items()}
    return {"count": len(differences), **counts, **_figures(totals.figures)}


def _figures(figures: Figures | None) -> dict[str, Any]:
    if figures is None:
        return dict.fromkeys(("relative_error", "cosine", "norm_ratio", "norm_a", "norm_b", "norm_difference"))
    known = {
        "relative_error": figures.relative_error,
        "cosine": figures.cosine,
        "norm_ratio": figures.norm_ratio,
        "norm_a": math.sqrt(figures.a2),
        "norm_b": math.sqrt(figures.b2),
        "norm_difference": math.sqrt(figures.difference2),
    }
    return {name: value if value is not None and math.isfinite(value) else None for name, value in known.items()}


def _site(each: Difference) -> dict[str, Any]:
    ranks = each.ranks
    side = each.a or each.b
    return {
        "status": each.status,
        "shape": list(side.shape) if side else None,
        **_figures(each.figures),
        "rank_a": ranks and ranks.a,
        "rank_b": ranks and ranks.b,
        "rank_difference": ranks and ranks.difference,
    }


def _tensor(each: Difference) -> dict[str, Any]:
    figures = {**_figures(each.figures), "relative_error": 0.0} if each.status == "equal" else _figures(each.figures)
    rank = each.ranks.difference if each.ranks else None
    return {
        "status": each.status,
        "a": _side(each.a),
        "b": _side(each.b),
        **figures,
        "rank_difference": rank,
        "not_finite": each.not_finite,
    }


def _side(side: Side | None) -> dict[str, Any] | None:
    return {"shape": list(side.shape), "dtype": side.dtype} if side else None

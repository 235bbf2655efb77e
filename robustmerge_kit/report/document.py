"""An inspection as one JSON document; figures that are not defined are null."""

from __future__ import annotations

from typing import Any

from .reports import AdapterReport, Inspection, SiteReport, Spread, Totals


def as_json(inspection: Inspection, *, sites: bool = False) -> dict[str, Any]:
    """The document, with one entry per site where `sites` is set."""
    return {"adapters": [_adapter(each, sites) for each in inspection.adapters], "together": list(inspection.together)}


def _adapter(report: AdapterReport, sites: bool) -> dict[str, Any]:
    if report.error:
        error = {"where": report.error.where, "what": report.error.what, "hint": report.error.hint}
        return {"adapter": report.reference, "name": report.label, "error": error}
    assert report.source is not None, "an adapter without error has been found"
    document: dict[str, Any] = {
        "adapter": report.reference,
        "name": report.label,
        "error": None,
        "usable": report.usable,
        "folder": str(report.source.folder),
        "repository": report.source.repository,
        "revision": report.source.revision,
        "format": report.layout,
        "base_model": report.base,
        "ranks": list(report.ranks),
        "alphas": None if report.alphas is None else list(report.alphas),
        "scales": list(report.scales),
        "targets": dict(report.targets),
        "sites": len(report.sites),
        "parameters": report.parameters,
        "dtypes": list(report.dtypes),
        "extras": [
            {"name": e.name, "kind": e.kind, "shape": list(e.spec.shape), "dtype": e.spec.dtype, "bytes": e.spec.nbytes}
            for e in report.extras
        ],
        "numbers": _totals(report.totals) if report.totals else None,
        "not_finite": {name: {"nan": c.nan, "inf": c.inf} for name, c in report.not_finite.items()},
        "warnings": list(report.warnings),
    }
    if sites:
        document["each_site"] = [_site(site) for site in report.sites]
    return document


def _totals(totals: Totals) -> dict[str, Any]:
    return {
        "norm": totals.norm,
        "effective_rank": _spread(totals.effective_rank),
        "singular_values": {**_spread(totals.singular), "condition": totals.condition},
        "zero_rows_a": totals.zero_rows_a,
        "zero_columns_b": totals.zero_columns_b,
        "dead": totals.dead,
        "zero_sites": totals.zero_sites,
        "gauge": _spread(totals.gauge),
    }


def _spread(spread: Spread | None) -> dict[str, float | None]:
    if spread is None:
        return {"least": None, "median": None, "most": None}
    return {"least": spread.least, "median": spread.median, "most": spread.most}


def _site(site: SiteReport) -> dict[str, Any]:
    numbers = site.numbers
    return {
        "site": site.name,
        "kind": site.kind,
        "experts": site.experts,
        "d_out": site.d_out,
        "d_in": site.d_in,
        "rank": site.rank,
        "scale": site.scale,
        "numbers": numbers
        and {
            "norm": numbers.norm,
            "effective_rank": numbers.effective_rank,
            "singular_values": list(numbers.singular_values),
            "zero_rows_a": numbers.zero_rows_a,
            "zero_columns_b": numbers.zero_columns_b,
            "dead": numbers.dead,
            "gauge": numbers.gauge,
        },
    }

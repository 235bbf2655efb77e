"""Every figure of every site as the page's script takes it: columns of numbers, and the cells of the heat maps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ...output.grid import lay_out
from ..analysis.records import Analysis, Pair, Site, TaskInMerge
from .figures import MERGE, PAIR, SITE, TASK, UPDATE, Figure, Of


def explorer(report: Analysis) -> dict[str, Any]:
    """What the heat maps and the table of sites are made from, as JSON.

    groups: who is looked at. axes: its choices, each a name and labels. A figure's `values` holds one column of numbers per
    choice, first axis slowest; each column has one number per site.
    """
    adapters = [adapter.label for adapter in report.adapters]
    methods = [method.label for method in report.methods]
    pairs = list(itertools.combinations(range(len(adapters)), 2))
    sites = report.sites
    groups = [
        _group(
            "pair", "two adapters", [("pair", [f"{adapters[i]} × {adapters[j]}" for i, j in pairs])], PAIR, _pairs(sites, pairs)
        ),
        _group(
            "task",
            "an adapter in the merge",
            [("method", methods), ("adapter", adapters)],
            TASK,
            _tasks(sites, len(methods), len(adapters)),
        ),
        _group(
            "merge",
            "the merged update",
            [("method", methods)],
            MERGE,
            ([site.merges[m] for site in sites] for m in range(len(methods))),
        ),
        _group(
            "adapter",
            "one adapter",
            [("adapter", adapters)],
            UPDATE,
            ([site.updates[a] for site in sites] for a in range(len(adapters))),
        ),
        _group("site", "all adapters together", [], SITE, iter([sites])),
    ]
    names = [site.site for site in sites]
    return {
        "sites": names,
        "shapes": [f"{site.d_out} × {site.d_in}" for site in sites],
        "panels": [
            {
                "name": panel.name,
                "layers": panel.layers,
                "modules": panel.modules,
                "cells": [[row, column, *members] for (row, column), members in panel.cells.items()],
            }
            for panel in lay_out(names)
        ],
        "groups": [group for group in groups if group["figures"]],
    }


def _pairs(sites: Sequence[Site], pairs: Sequence[tuple[int, int]]) -> Iterator[Sequence[Pair | None]]:
    by_site = [{(pair.first, pair.second): pair for pair in site.pairs} for site in sites]
    return ([there.get(pair) for there in by_site] for pair in pairs)


def _tasks(sites: Sequence[Site], methods: int, adapters: int) -> Iterator[Sequence[TaskInMerge | None]]:
    choices = itertools.product(range(methods), range(adapters))
    return ([site.merges[method].tasks[adapter] for site in sites] for method, adapter in choices)


def _group(
    key: str,
    title: str,
    axes: Sequence[tuple[str, Sequence[str]]],
    figures: Sequence[Figure[Of]],
    columns: Iterator[Sequence[Of | None]],
) -> dict[str, Any]:
    """One group; figures that are never known are left out."""
    held = list(columns)
    listed: list[dict[str, Any]] = []
    for figure in figures:
        values = [[None if each is None else _digits(figure.of(each)) for each in column] for column in held]
        if any(value is not None for column in values for value in column):
            listed.append(
                {
                    "key": figure.key,
                    "title": figure.title,
                    "meaning": figure.meaning,
                    "scale": figure.scale,
                    "worst": figure.worst,
                    "values": values,
                }
            )
    return {"key": key, "title": title, "axes": [{"name": name, "labels": labels} for name, labels in axes], "figures": listed}


def _digits(value: float | None) -> float | int | None:
    """Four digits: what can be seen, in few letters."""
    if value is None:
        return None
    short = float(f"{value:.4g}")
    return int(short) if short == int(short) else short

"""How well figures that need no data order settings: rank correlation with accuracy on the validation rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .ledger import Ledger
from .settings import Row

FEWEST = 5
"""Settings below which a correlation says nothing."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho of a figure with validation accuracy over all settings, RobustMerge's, all others; NaN where unknown."""

    figure: str
    all: float
    robust: float
    others: float
    count: int


def correlations(ledger: Ledger, rows: Sequence[Row]) -> list[Correlation]:
    """Every figure against accuracy, the closest first."""
    known = read_figures(ledger.cache)
    tried = {setting.key: (setting, score) for row in rows for setting, score in ledger.tried(row)}
    points = [
        (setting.method == "robustmerge", known[key], score.mean(list(score.accuracy)))
        for key, (setting, score) in tried.items()
        if key in known
    ]
    if len(points) < FEWEST:
        return []
    found = [
        Correlation(
            figure,
            *(
                _rho([(figures[figure], accuracy) for robust, figures, accuracy in points if robust in kinds])
                for kinds in ((True, False), (True,), (False,))
            ),
            count=len(points),
        )
        for figure in points[0][1]
    ]
    return sorted(found, key=lambda each: -abs(each.all))


def read_figures(cache: Path) -> dict[str, Mapping[str, float]]:
    """Figures by the setting's key."""
    path = figures_path(cache)
    lines = path.read_text().splitlines() if path.exists() else []
    return {each["setting"]: each["figures"] for each in map(json.loads, lines)}


def figures_path(cache: Path) -> Path:
    """Where the figures of settings are kept."""
    return cache / "diagnostics.jsonl"


def _rho(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's rho: the correlation of the ranks; NaN for few points or where one side is constant."""
    x, y = _ranks([pair[0] for pair in pairs]), _ranks([pair[1] for pair in pairs])
    if len(pairs) < FEWEST or min(len(set(x)), len(set(y))) < 2:
        return float("nan")
    return statistics.correlation(x, y)


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank of every value, equal ones share the mean of theirs."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]

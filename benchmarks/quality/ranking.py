"""How well figures that need no data order settings: rank correlation with accuracy on the validation rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr

from robustmerge_kit.hashing import Hashing
from robustmerge_kit.plan import gather
from robustmerge_kit.resources import Resources
from robustmerge_kit.sweep.diagnostics import Diagnostics

from .ledger import FIRST, Ledger
from .merging import adapter_recipe
from .settings import Row, Setting

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


def rank(ledger: Ledger, rows: Sequence[Row]) -> None:
    """Compute the figures of every setting that was validated, and keep them; by the search's own data-free score."""
    validated = ledger.zero_shot("validation")
    if validated is None:
        raise SystemExit(f"{ledger.cache}: nothing is evaluated yet; `evaluate` comes first")
    adapters = [ledger.adapter(FIRST, name) for name in validated.accuracy]
    known = read_figures(ledger.cache)
    first = adapter_recipe(Setting("task_arithmetic"), adapters)
    inputs = gather(first)
    with Hashing(inputs) as hashing:
        diagnostics = Diagnostics(inputs, first, hashing, Resources(workers=1))
        for setting in (setting for row in rows for setting, _ in ledger.tried(row)):
            if setting.key not in known:
                figures = diagnostics.diagnose(adapter_recipe(setting, adapters)).parts()
                with _path(ledger.cache).open("a") as file:
                    file.write(json.dumps({"setting": setting.key, "figures": figures}) + "\n")
                print(setting.key, f"score {figures['score']:+.3f}", flush=True)


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
    path = _path(cache)
    lines = path.read_text().splitlines() if path.exists() else []
    return {each["setting"]: each["figures"] for each in map(json.loads, lines)}


def _path(cache: Path) -> Path:
    return cache / "diagnostics.jsonl"


def _rho(pairs: Sequence[tuple[float, float]]) -> float:
    if len(pairs) < FEWEST or min(len({x for x, _ in pairs}), len({y for _, y in pairs})) < 2:
        return float("nan")
    return float(spearmanr([x for x, _ in pairs], [y for _, y in pairs]).statistic)

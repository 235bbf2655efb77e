"""Figures of settings that need no data, by the score `rmkit sweep` ranks by; kept, so that a later run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence

from robustmerge_kit.hashing import Hashing
from robustmerge_kit.plan import gather
from robustmerge_kit.resources import Resources
from robustmerge_kit.sweep.diagnostics import Diagnostics

from .correlation import figures_path, read_figures
from .ledger import FIRST, Ledger
from .merging import adapter_recipe
from .settings import Row, Setting


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
                with figures_path(ledger.cache).open("a") as file:
                    file.write(json.dumps({"setting": setting.key, "figures": figures}) + "\n")
                print(setting.key, f"score {figures['score']:+.3f}", flush=True)

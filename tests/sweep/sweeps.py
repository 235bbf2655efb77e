"""Recipes with sweeps over small adapters, and sweeps in processes that are killed at a chosen moment."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from small_adapters import write_adapters

SEARCH: Mapping[str, Any] = {
    "merge_method": ["ties", "task_arithmetic"],
    "density": {"low": 0.1, "high": 1.0},
    "gain": {"low": 0.1, "high": 4.0, "log": True},
    "output.rank": {"low": 2, "high": 8},
}


def write_sweep(place: Path, name: str = "r", search: Mapping[str, Any] = SEARCH, recipe: Any = None, **sweep: Any) -> Path:
    """A recipe with a sweep; its adapters lie in `inputs` beside it."""
    if not (place / "inputs").exists():
        write_adapters(place / "inputs", 3)
    settings = {"search": dict(search), "evaluate": "diagnostics", "trials": 6, "startup": 3, **sweep}
    content = {
        "merge_method": "task_arithmetic",
        "adapters": [f"inputs/adapter{i}" for i in range(3)],
        **(recipe or {}),
        "sweep": {key: value for key, value in settings.items() if value is not None},
    }
    path = place / f"{name}.yaml"
    path.write_text(json.dumps(content))
    return path


def scores(document: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What two runs of one sweep must agree in."""
    return [
        (each["trial"], each["state"], each["score"], each["params"], each.get("reason"), each.get("parts"))
        for each in document["trials"]
    ]


def killed_at(moment: int, arguments: list[str], output: str) -> None:
    """`rmkit ...` with stdout in a file, ended by SIGKILL at the `moment`-th change of the study, of the best recipe or of a
    merged folder; negative: never.
    """
    import optuna
    from optuna.storages import RDBStorage

    from robustmerge_kit.report import pictures

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pictures.can_draw = lambda: False
    seen = [0]

    def tick() -> None:
        if seen[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1

    def watched(real: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            tick()
            found = real(*given, **named)
            tick()
            return found

        return call

    for name in ("create_new_study", "create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr"):
        setattr(RDBStorage, name, watched(getattr(RDBStorage, name)))
    for name in ("replace", "rename", "mkdir"):
        setattr(Path, name, watched(getattr(Path, name)))
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import sys

    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    from robustmerge_kit.cli import main

    try:
        main(arguments)
    finally:
        sys.stdout.flush()
        Path(f"{output}.ticks").write_text(str(seen[0]))

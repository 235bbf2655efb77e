"""The quality benchmark's smallest setting: a ViT, two tasks of digits, a few steps; merged beats zero-shot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TASKS = ("digits_high", "digits_low_turned_90")
STEPS = 60

pytest.importorskip("sklearn")
pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bench with an encoder and two adapters, trained here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        from quality.bench import Bench
        from quality.image_encoder import ImageEncoder, Shape, train_encoder
        from quality.images import read_image_tasks
        from quality.ledger import Ledger
        from quality.train import Training, train_all
        from quality.train_order import Wanted

        cache = tmp_path_factory.mktemp("quality")
        tasks, learnt = read_image_tasks(None)
        tasks = [task for task in tasks if task.name in TASKS]
        base = train_encoder(cache / "encoder", learnt, Shape(hidden=64, inner=128, layers=2, heads=2, epochs=6, batch=32))
        bench = Bench(ImageEncoder(base), base, tasks, Ledger(cache, 200, 60))
        how = Training(rows=480, epochs=4, batch=32, rate=3e-3)
        train_all(bench.encoder, tasks, [Wanted(name) for name in TASKS], cache, how)
        return bench


def test_merged_beats_zero_shot_and_individual_beats_merged(trained: Any) -> None:
    from quality.ledger import FIRST
    from quality.settings import Setting

    setting = Setting("task_arithmetic", {"gain": 0.7})
    trained.zero_shot("test")
    trained.individual(FIRST)
    trained.merge(setting, FIRST, "test")
    zero, merged = trained.ledger.zero_shot(), trained.ledger.score(setting, FIRST)
    individual = [trained.ledger.individual(FIRST, name) for name in TASKS]
    assert merged.mean(TASKS) > zero.mean(TASKS) + 0.05
    assert sum(individual) / 2 > zero.mean(TASKS) + 0.1

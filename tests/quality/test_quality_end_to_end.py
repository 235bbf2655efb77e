"""The quality benchmark's smallest setting: a ViT, two tasks of digits, a few steps; merged beats zero-shot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TASKS = ("digits_high", "digits_high_turned_180")

pytest.importorskip("sklearn")
pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An encoder and two adapters, trained here."""
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
        base = train_encoder(cache / "encoder", learnt, Shape(hidden=64, inner=128, layers=2, heads=2, epochs=8, batch=32))
        bench = Bench(ImageEncoder(base), base, tasks, Ledger(cache, 200, 60))
        how = Training(rows=480, epochs=8, batch=32, rate=3e-3)
        train_all(bench.encoder, tasks, [Wanted(name) for name in TASKS], cache, how)
        return bench


def test_merged_beats_zero_shot_and_an_adapter_beats_merged_on_its_own_task(bench: Any) -> None:
    from quality.ledger import FIRST
    from quality.settings import Setting

    setting = Setting("task_arithmetic", {"gain": 0.5})
    bench.zero_shot("test")
    bench.individual(FIRST)
    bench.merge(setting, FIRST, "test")
    zero, merged = bench.ledger.zero_shot(), bench.ledger.score(setting, FIRST)
    individual = sum(bench.ledger.individual(FIRST, name) for name in TASKS) / 2
    assert zero.mean(TASKS) + 0.1 < merged.mean(TASKS) < individual


def test_one_adapter_of_weight_1_classifies_as_peft_does(bench: Any) -> None:
    from peft import PeftModel
    from quality.bench import ALONE
    from quality.ledger import FIRST
    from quality.merging import merged

    task, folder = bench.tasks[0], bench.ledger.adapter(FIRST, bench.tasks[0].name)
    anchors, plain = bench.anchors[task.name], bench.encoder.module
    found = {}
    for rank in (None, 16):
        with merged(plain, ALONE.cut(rank), [folder], bench.base):
            found[rank] = bench.encoder.encode(task.test.inputs) @ anchors.T
    before = bench.encoder.encode(task.test.inputs)
    wrapped = PeftModel.from_pretrained(plain, folder)
    bench.encoder.module = wrapped
    expected = bench.encoder.encode(task.test.inputs) @ anchors.T
    bench.encoder.module = wrapped.unload()
    assert torch.equal(before, bench.encoder.encode(task.test.inputs))
    for logits in found.values():
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert torch.equal(logits.argmax(1), expected.argmax(1))


def test_trained_adapters_are_not_trained_again_and_scores_not_computed_again(bench: Any, capsys: Any) -> None:
    from quality.ledger import FIRST
    from quality.settings import Setting
    from quality.train import Training, train_all
    from quality.train_order import Wanted

    bench.merge(Setting("linear"), FIRST, "test")
    weights = bench.ledger.adapter(FIRST, TASKS[0]) / "adapter_model.safetensors"
    written, length = weights.stat().st_mtime_ns, bench.ledger.scores.path.stat().st_size
    capsys.readouterr()
    train_all(bench.encoder, bench.tasks, [Wanted(name) for name in TASKS], bench.ledger.cache, Training())
    bench.merge(Setting("linear"), FIRST, "test")
    assert (weights.stat().st_mtime_ns, bench.ledger.scores.path.stat().st_size) == (written, length)
    assert capsys.readouterr().out == ""


def test_a_setting_the_tool_refuses_is_named_and_left_out(bench: Any, capsys: Any) -> None:
    from quality.ledger import FIRST
    from quality.settings import Setting

    bench.merge(Setting("ties", {"density": 2.0}), FIRST, "test")
    assert "left out" in capsys.readouterr().out
    assert bench.ledger.score(Setting("ties", {"density": 2.0}), FIRST) is None

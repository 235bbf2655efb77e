"""The shipped adapters are worth merging, and the whole quick start, from recipe to table, holds together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart"


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import evaluate

    return evaluate


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_every_adapter_beats_the_base_by_the_margin_on_its_own_task(evaluate: ModuleType) -> None:
    base, single = evaluate.base_accuracies(), evaluate.single_accuracies()
    assert evaluate.MARGIN == 15.0
    assert len(evaluate.TASKS) >= 4
    assert {
        task: own - without >= 15.0 for task, without, own in zip(evaluate.TASKS, base, single, strict=True)
    } == dict.fromkeys(evaluate.TASKS, True)


def test_an_adapter_that_learned_nothing_stops_the_evaluation(evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MARGIN", 60.0)
    with pytest.raises(SystemExit, match=r"edges: the adapter reads .* less than 60 points above the base's"):
        evaluate.single_accuracies()


def test_base_and_adapters_fit_in_a_megabyte() -> None:
    assert sum(file.stat().st_size for file in QUICKSTART.rglob("*.safetensors")) < 1_000_000


def test_the_parts_of_the_data_are_disjoint_and_whole(evaluate: ModuleType) -> None:
    from digits import split

    parts = {part: split(part)[0].reshape(-1, 64) for part in ("pretrain", "train", "test")}
    assert sum(map(len, parts.values())) == 1797
    assert [round(len(images) / 1797, 2) for images in parts.values()] == [0.5, 0.25, 0.25]
    rows = {part: {image.tobytes() for image in images} for part, images in parts.items()}
    assert not rows["test"] & rows["train"]
    assert not rows["test"] & rows["pretrain"]


def test_the_adapters_are_peft_folders_of_one_base_with_their_own_starts() -> None:
    from safetensors.torch import load_file

    folders = sorted((QUICKSTART / "adapters").iterdir())
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    assert {config["base_model_name_or_path"] for config in configs} == {"digit_reader"}
    assert {(config["peft_type"], config["r"], config["lora_alpha"]) for config in configs} == {("LORA", 16, 32)}
    first = [
        load_file(folder / "adapter_model.safetensors")["base_model.model.layers.0.linear.lora_A.weight"] for folder in folders
    ]
    from torch.nn.functional import cosine_similarity

    alike = [float(cosine_similarity(a.flatten(), b.flatten(), dim=0)) for i, a in enumerate(first) for b in first[:i]]
    assert max(map(abs, alike)) < 0.2


@pytest.mark.slow
def test_training_again_gives_adapters_that_are_as_good(
    tmp_path: Path, evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = python(str(QUICKSTART / "train.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("digits.BASE", tmp_path / "base")
    monkeypatch.setattr(evaluate, "ADAPTERS", tmp_path / "adapters")
    assert min(evaluate.single_accuracies()) > 70


def merge(recipe: str, out: Path) -> None:
    done = python("-m", "robustmerge_kit", "run", "--quiet", "-j", "1", str(ROOT / "recipes" / recipe), str(out))
    assert done.returncode == 0, done.stderr


def test_the_quick_start_ends_with_one_table(tmp_path: Path, evaluate: ModuleType) -> None:
    robust, linear = tmp_path / "robust", tmp_path / "linear"
    merge("quickstart.yaml", robust)
    merge("quickstart_linear.yaml", linear)
    done = python("-W", "error", str(QUICKSTART / "evaluate.py"), f"merged (RobustMerge)={robust}", f"merged (linear)={linear}")
    assert done.returncode == 0, done.stderr
    rows = cells(done.stdout)
    assert list(rows) == ["base", "single adapter, own task", "merged (RobustMerge)", "merged (linear)"]
    assert {len(values) for values in rows.values()} == {len(evaluate.TASKS) + 1}
    assert rows["merged (linear)"][-1] > rows["base"][-1] + 5
    assert rows["merged (RobustMerge)"] != rows["base"]


def test_the_table_of_a_folder_that_is_not_there_says_what_to_run(evaluate: ModuleType) -> None:
    with pytest.raises(SystemExit, match="recipes/nowhere: no merged adapter here; run `make quickstart`"):
        evaluate.main(["nothing=recipes/nowhere"])


def cells(printed: str) -> dict[str, Sequence[float]]:
    """The rows of the table: label -> numbers."""
    lines = printed.splitlines()[2:]
    columns = len(lines[0]) - 5 * 11
    return {line[:columns].strip(): [float(number) for number in line[columns:].split()] for line in lines}

"""Tasks of the quality benchmark: what is fitted, chosen on and tested never meets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def write_task(folder: Path, train: int = 40, test: int = 10) -> Path:
    folder.mkdir(parents=True)
    (folder / "prompts.json").write_text(json.dumps(["a", "b"]))
    for part, count in (("train", train), ("test", test)):
        rows = [json.dumps({"text": f"{part} {i}", "label": i % 2}) for i in range(count)]
        (folder / f"{part}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_fitted_validation_and_test_rows_are_apart_and_complete(tmp_path: Path) -> None:
    from quality.tasks import read_task

    task = read_task(write_task(tmp_path / "t"), "seen")
    fitted, held, tested = (set(rows.inputs) for rows in (task.fitted(), task.validation(), task.tested()))
    assert len(held) == 4
    assert fitted | held == {f"train {i}" for i in range(40)}
    assert not fitted & held
    assert tested == {f"test {i}" for i in range(10)}


def test_fewer_rows_are_the_first_of_more_and_the_same_every_time(tmp_path: Path) -> None:
    from quality.tasks import read_task

    folder = write_task(tmp_path / "t")
    task, again = read_task(folder, "seen"), read_task(folder, "seen")
    for take in ("fitted", "validation", "tested"):
        few, more = getattr(task, take)(3), getattr(again, take)(4)
        assert list(few.inputs) == list(more.inputs[:3])
        assert torch.equal(few.labels, more.labels[:3])
    assert list(task.fitted().inputs) != sorted(task.fitted().inputs)


def test_labels_stay_with_their_texts(tmp_path: Path) -> None:
    from quality.tasks import read_task

    task = read_task(write_task(tmp_path / "t"), "seen")
    for rows in (task.fitted(), task.validation(), task.tested()):
        assert [int(text.split()[1]) % 2 for text in rows.inputs] == rows.labels.tolist()


def test_a_missing_task_is_named(tmp_path: Path) -> None:
    from quality.tasks import read_text_tasks

    with pytest.raises(SystemExit, match="no task snips_intent"):
        read_text_tasks(tmp_path)


def test_image_tasks_number_their_classes_from_0_and_change_their_images() -> None:
    pytest.importorskip("sklearn")
    from quality.images import read_image_tasks

    tasks, learnt = read_image_tasks(None)
    seen = [task for task in tasks if task.role == "seen"]
    assert len(seen) >= 5
    by_name = {task.name: task for task in (*tasks, *learnt)}
    for task in tasks:
        assert task.train.labels.unique().tolist() == list(range(int(task.train.labels.max()) + 1))
        assert task.train.inputs.shape[1:] == (28, 28)
        assert 0 <= task.train.inputs.min() <= task.train.inputs.max() <= 1
    low, turned = by_name["digits_low"], by_name["digits_low_turned_90"]
    assert torch.equal(turned.train.inputs, low.train.inputs.rot90(1, (1, 2)))
    assert torch.equal(by_name["digits_low_inverted"].test.inputs, 1 - low.test.inputs)


def test_no_two_tasks_share_their_seeds() -> None:
    from quality.images import CUTS, DIGITS
    from quality.task_names import SEEN
    from quality.train import number
    from quality.train_order import MULTITASK

    for names in (SEEN, [cut.name for cut in CUTS], [cut.name for cut in DIGITS]):
        numbers = {number(name) for name in (*names, MULTITASK)}
        assert len(numbers) == len(names) + 1


def test_batches_hold_every_row_once() -> None:
    from quality.encoder import batches

    lengths = [i % 7 for i in range(50)]
    found = list(batches(lengths, 8, torch.Generator().manual_seed(0)))
    assert sorted(row for batch in found for row in batch) == list(range(50))
    assert max(map(len, found)) == 8


def test_downloaded_rows_are_sampled_apart_and_described(tmp_path: Path) -> None:
    from quality.fetch import Origin, write_task
    from quality.tasks import read_task

    train = [{"t": f"text  {i}", "l": "no" if i % 2 else "yes"} for i in range(12)]
    test = [{"t": f"text {i}", "l": "no"} for i in range(1, 6, 2)]
    write_task(tmp_path / "task", Origin("org/data", "t", "l", ("Yes.", "No."), renumber={"yes": 0, "no": 1}), train, test, [])
    task = read_task(tmp_path / "task", "unseen")
    assert sorted(task.test.inputs) == ["text 1", "text 3", "text 5"]
    assert set(task.train.inputs) == {f"text {i}" for i in range(12)} - set(task.test.inputs)
    assert all(label == int(text.split()[1]) % 2 for text, label in zip(task.train.inputs, task.train.labels, strict=True))
    assert task.descriptions == ("Yes.", "No.")


def test_one_part_is_split_in_two_when_there_is_no_test_part(tmp_path: Path) -> None:
    from quality.fetch import Origin, write_task
    from quality.tasks import read_task

    rows = [{"t": f"text {i}", "l": i % 2} for i in range(20)]
    write_task(tmp_path / "task", Origin("org/data", "t", "l", test="train"), rows, rows, ["ham", "spam_text"])
    task = read_task(tmp_path / "task", "unseen")
    assert (len(task.test), len(task.train)) == (4, 16)
    assert not set(task.test.inputs) & set(task.train.inputs)
    assert task.descriptions == ("Ham.", "Spam text.")

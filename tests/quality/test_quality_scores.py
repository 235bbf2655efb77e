"""Scores, choices and tables of the quality benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def fill(cache: Path) -> Any:
    """A ledger of two seen tasks and an unseen one: references, two settings, two seeds."""
    from quality.ledger import FIRST, INDIVIDUAL, ZERO_SHOT, Ledger
    from quality.scores import Score
    from quality.settings import Setting

    ledger = Ledger(cache, 100, 50)

    def add(trial: Any, **accuracy: float) -> None:
        ledger.scores.add(Score(trial, accuracy, accuracy))

    add(ledger.trial(ZERO_SHOT, "", "test"), sms_spam=0.5, b=0.4, u=0.3)
    add(ledger.trial(ZERO_SHOT, "", "validation"), sms_spam=0.5, b=0.4)
    for group in (FIRST, "independent-r16-s1"):
        for name in ("sms_spam", "b"):
            add(ledger.trial(INDIVIDUAL, group, "test", [name]), **{name: 0.8})
    for gain, good in ((0.3, 0.5), (0.5, 0.7)):
        add(ledger.trial(Setting("linear", {"gain": gain}).key, FIRST, "validation"), sms_spam=good, b=good)
    chosen = Setting("linear", {"gain": 0.5})
    add(ledger.trial(chosen.key, FIRST, "test"), sms_spam=0.6, b=0.8, u=0.4)
    add(ledger.trial(chosen.key, "independent-r16-s1", "test"), sms_spam=0.8, b=0.8, u=0.5)
    return ledger


def rows(tmp_path: Path) -> list[Any]:
    from quality.settings import read_rows

    path = tmp_path / "settings.yaml"
    path.write_text("rows:\n  linear: {default: {gain: 1}, grid: {gain: [0.3, 0.5]}}\n  tsv_m:\n")
    return read_rows("text", path)


def test_macro_f1_counts_every_class_alike() -> None:
    from quality.measure import macro_f1

    labels = torch.tensor([0, 0, 0, 1])
    assert macro_f1(torch.tensor([0, 0, 0, 0]), labels) == pytest.approx((6 / 7 + 0) / 2)
    assert macro_f1(labels, labels) == 1
    assert macro_f1(torch.tensor([1, 1, 1, 0]), labels) == 0


def test_a_torn_line_loses_only_itself(tmp_path: Path) -> None:
    from quality.scores import Score, Scores, Trial

    one, two = (Trial(name, "g", "test", 10, ("a",)) for name in ("one", "two"))
    scores = Scores(tmp_path / "scores.jsonl")
    scores.add(Score(one, {"a": 0.5}, {"a": 0.5}))
    with scores.path.open("a") as file:
        file.write('{"trial": {"setting": "tor')
    assert scores.get(one)
    scores.add(Score(two, {"a": 0.6}, {"a": 0.6}))
    again = Scores(scores.path)
    assert [score.trial for score in again.all()] == [one, two]
    assert scores.get(two) == again.get(two)


def test_the_best_on_validation_rows_is_chosen_whatever_the_test_rows_say(tmp_path: Path) -> None:
    ledger = fill(tmp_path)
    linear, other = rows(tmp_path)
    assert ledger.choose(linear).parameters == {"gain": 0.5}
    assert ledger.choose(other) == other.default


def test_figures_are_means_over_tasks_then_seeds(tmp_path: Path) -> None:
    from quality.summary import lines, summarize

    summary = summarize(fill(tmp_path))
    assert summary is not None
    assert (summary.seen, summary.unseen) == (("sms_spam", "b"), ("u",))
    (line,) = lines(summary, rows(tmp_path))
    assert not line.settled
    assert line.full.seen.values == pytest.approx((0.7, 0.8))
    assert line.full.seen.words == ".750 ± .071"
    assert line.full.unseen.words == ".450 ± .071"
    assert line.full.normalised.values == pytest.approx((0.875, 1.0))
    assert line.default.seen.words == ""


def test_the_report_says_what_is_there_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    import quality.report

    monkeypatch.setattr(quality.report, "read_rows", lambda modality: rows(tmp_path))
    results = tmp_path / "out" / "RESULTS.md"
    results.parent.mkdir()
    quality.report.report("text", fill(tmp_path), results)
    text = results.read_text()
    assert "| linear | gain 0.5 (not all tried) | 2 | .750 ± .071 | .450 ± .071 | .938 ± .088 |" in text
    assert "| zero-shot |  |  | .450 | .300 |  |" in text
    assert "| linear | .700 | .800 | .450 |" in text
    assert "not evaluated: tsv_m" in text
    assert "42 of 42" not in text
    assert "macro-F1" in text
    document = json.loads((results.parent / "quality" / "text.json").read_text())
    assert document["chosen"]["linear"]["parameters"] == {"gain": 0.5}
    assert "<svg" in (results.parent / "quality" / "text.svg").read_text()


def test_nothing_evaluated_is_said(tmp_path: Path) -> None:
    from quality.ledger import Ledger
    from quality.report import report

    with pytest.raises(SystemExit, match="nothing is evaluated"):
        report("text", Ledger(tmp_path, 1, 1), tmp_path / "RESULTS.md")


def test_figures_that_order_settings_as_accuracy_does_have_correlation_1(tmp_path: Path) -> None:
    from quality.correlation import correlations
    from quality.ledger import FIRST, Ledger
    from quality.scores import Score
    from quality.settings import Row, Setting

    ledger = Ledger(tmp_path, 100, 50)
    settings = [Setting("linear", {"gain": gain}) for gain in (1, 2, 3, 4, 5, 6)]
    for place, setting in enumerate(settings):
        ledger.scores.add(Score(ledger.trial(setting.key, FIRST, "validation"), {"a": place / 10}, {"a": 0.0}))
        with (tmp_path / "diagnostics.jsonl").open("a") as file:
            figures = {"score": place**3, "energy": -place, "kept": 1.0}
            file.write(json.dumps({"setting": setting.key, "figures": figures}) + "\n")
    found = {each.figure: each for each in correlations(ledger, [Row("linear", settings[0], tuple(settings))])}
    assert (found["score"].all, found["score"].others, found["energy"].all) == pytest.approx((1, 1, -1))
    assert found["score"].robust != found["score"].robust
    assert found["kept"].all != found["kept"].all


def test_every_method_stands_in_the_settings_file_and_every_setting_is_legal() -> None:
    from quality.merging import adapter_recipe
    from quality.settings import read_rows

    from robustmerge_kit.methods import BUILTIN
    from robustmerge_kit.recipe import parse_recipe

    table = [*read_rows("text"), *read_rows("vision")]
    left_out = {"cat", "svd", "slerp", "nuslerp"}
    builtin = {method.name for method in BUILTIN if not method.name.startswith("mergekit/")}
    assert {row.default.method for row in table} == builtin - left_out
    for setting in {setting.key: setting for row in table for setting in (row.default, *row.candidates)}.values():
        recipe = adapter_recipe(setting, [Path("a"), Path("b")])
        parse_recipe(json.dumps(recipe.model_dump(exclude_defaults=True, by_alias=True, mode="json")))


def test_studies_differ_from_the_chosen_setting_in_what_they_ask() -> None:
    from quality.settings import Setting
    from quality.studies import studies

    chosen = {
        "robustmerge paper": Setting("robustmerge", {"variant": "paper", "density": 1.0, "gain": 4}),
        "task_arithmetic": Setting("task_arithmetic", {"gain": 0.5}),
    }
    by_title = {question.title: question.lines for question in studies(chosen, list("abcdefgh"))}
    components = {line.words: line.setting.parameters for line in by_title["Components"]}
    assert components["paper: all"]["density"] == 0.2
    assert components["paper: without pruning"]["prune"] is False
    assert components["paper: without normalisation, gain 0.5"] | {"gain": 4, "normalize": True} == components["paper: all"] | {
        "normalize": True
    }
    assert [line.names for line in by_title["Number of tasks"]][:4] == [("a", "b"), tuple("abcd"), tuple("abcdef"), ()]
    assert {line.group for line in by_title["Rank"]} == {f"independent-r{rank}-s0" for rank in (4, 16, 64)}

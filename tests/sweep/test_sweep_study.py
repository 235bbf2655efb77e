"""A study: what trials draw, and that nothing of it depends on how often it was interrupted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from sweeps import SEARCH, write_sweep

from robustmerge_kit.errors import OutputError
from robustmerge_kit.recipe import Recipe, load_recipe, parse_recipe
from robustmerge_kit.sweep.study import Study
from robustmerge_kit.sweep.trials import Trial, best_of, is_stale


def recipe(search: dict[str, Any] | None = None, **sweep: Any) -> Recipe:
    settings = {"search": search or dict(SEARCH), "evaluate": "diagnostics", "trials": 12, "startup": 4, **sweep}
    content = {"merge_method": "ties", "adapters": ["a", "b"], "sweep": {k: v for k, v in settings.items() if v is not None}}
    return parse_recipe(json.dumps(content))


def fake_score(trial: Trial) -> float:
    params = trial.params
    return -((params.get("density", 0.5) - 0.3) ** 2) - (params["gain"] - 1) ** 2 - params["output.rank"] / 100


def course(path: Path, given: Recipe, stop: int | None = None) -> list[Trial]:
    study = Study(path, given, {"of": "this"})
    while (trial := study.draw()) is not None:
        if trial.number == stop:
            break
        failed = trial.number % 5 == 3
        study.tell(
            replace(trial, state="failed", reason="x") if failed else replace(trial, state="complete", score=fake_score(trial))
        )
    return study.trials()


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("random", marks=pytest.mark.slow)])
def test_an_interrupted_study_goes_on_as_if_it_had_not_been(sampler: str, tmp_path: Path) -> None:
    given = recipe(sampler=sampler)
    whole = course(tmp_path / "whole.db", given)
    for stop in (0, 5, 9):
        course(tmp_path / "parts.db", given, stop)
    assert course(tmp_path / "parts.db", given) == whole
    assert [trial.number for trial in whole] == list(range(12))
    assert [trial.state for trial in whole].count("failed") == 2


def test_the_seed_decides(tmp_path: Path) -> None:
    drawn = [[t.params for t in course(tmp_path / f"{i}.db", recipe(seed=seed, trials=3))] for i, seed in enumerate((0, 0, 1))]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_tpe_learns_and_random_does_not(tmp_path: Path) -> None:
    search = {"gain": {"low": -10.0, "high": 10.0}, "output.rank": [4]}
    late = {
        sampler: [
            abs(trial.params["gain"] - 1)
            for trial in course(tmp_path / f"{sampler}.db", recipe(search, trials=30, sampler=sampler))[15:]
        ]
        for sampler in ("tpe", "random")
    }
    assert sum(late["tpe"]) < 0.6 * sum(late["random"])


def test_more_trials_go_on_after_those_that_are_there(tmp_path: Path) -> None:
    few = course(tmp_path / "s.db", recipe(trials=3))
    more = course(tmp_path / "s.db", recipe(trials=6))
    assert more[:3] == few
    assert more == course(tmp_path / "whole.db", recipe(trials=6))
    assert course(tmp_path / "s.db", recipe(trials=2)) == more


def test_values_keep_their_types(tmp_path: Path) -> None:
    search: dict[str, Any] = {
        "normalize": [True, False],
        "space": ["full", {"ctm": {"rank": 2}}],
        "output.rank": {"low": 1, "high": 100, "log": True},
        "density": {"low": 0.1, "high": 0.7, "step": 0.2},
        "gain": [[0.5, 1.0], 2],
    }
    trials = course_of(tmp_path / "s.db", recipe(search, sampler="random", trials=16))
    assert {type(t.params["normalize"]) for t in trials} == {bool}
    assert {type(t.params["output.rank"]) for t in trials} == {int}
    assert {t.params["density"] for t in trials} == {0.1, 0.3, 0.5, 0.7}
    assert [0.5, 1.0] in [t.params["gain"] for t in trials]
    assert {"ctm": {"rank": 2}} in [t.params["space"] for t in trials]


def course_of(path: Path, given: Recipe) -> list[Trial]:
    """Every trial scores the same."""
    study = Study(path, given, {})
    while (trial := study.draw()) is not None:
        study.tell(replace(trial, state="complete", score=0.0))
    return study.trials()


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    search = {"merge_method": ["ties", "linear"], "density": [0.1, 0.2, 0.3], "seed": {"low": 0, "high": 1, "step": 1}}
    given = recipe(search, sampler="grid", trials=None)
    trials = course_of(tmp_path / "s.db", given)
    ties = [{"merge_method": "ties", "density": d, "seed": s} for d in (0.1, 0.2, 0.3) for s in (0, 1)]
    assert [dict(trial.params) for trial in trials] == [*ties, *({"merge_method": "linear", "seed": s} for s in (0, 1))]
    assert len(course_of(tmp_path / "few.db", recipe(search, sampler="grid", trials=3))) == 3


def test_trials_under_way_are_drawn_once(tmp_path: Path) -> None:
    study = Study(tmp_path / "s.db", recipe(trials=3), {})
    drawn = [study.draw() for _ in range(4)]
    assert [trial and trial.number for trial in drawn] == [0, 1, 2, None]
    again = Study(tmp_path / "s.db", recipe(trials=3), {})
    assert [again.draw() for _ in range(4)] == drawn


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    Study(tmp_path / "s.db", recipe(), {"search": {"a": 1}, "seed": 0})
    with pytest.raises(OutputError, match="holds the trials of another sweep: search differs\nhint: --restart discards them"):
        Study(tmp_path / "s.db", recipe(), {"search": {"a": 2}, "seed": 0})
    with pytest.raises(OutputError, match="search, seed differ\n"):
        Study(tmp_path / "s.db", recipe(), {})


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"\0" * 100])
def test_a_file_that_is_no_study_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(content)
    with pytest.raises(OutputError, match="is not the study of a sweep"):
        Study(tmp_path / "s.db", recipe(), {})
    assert (tmp_path / "s.db").read_bytes()[: len(content)] == content or not content


def trial(number: int, score: float | None) -> Trial:
    return Trial(number, "failed" if score is None else "complete", score=score)


@pytest.mark.parametrize(
    ("scores", "maximize", "best"),
    [([], True, None), ([None], True, None), ([1, 3, 2, 3], True, 1), ([1, 3, 2, 1], False, 0), ([None, -1, 0.0], False, 1)],
)
def test_the_best_is_the_first_of_equal_ones(scores: list[float | None], maximize: bool, best: int | None) -> None:
    found = best_of([trial(i, score) for i, score in enumerate(scores)], maximize)
    assert (found and found.number) == best


@pytest.mark.parametrize(
    ("scores", "maximize", "stale"),
    [
        ([1, 1, 1], True, True),
        ([1, 1], True, False),
        ([1, 2, 1], True, False),
        ([3, 2, 1], True, True),
        ([3, 2, 1], False, False),
        ([None, None, None], True, False),
        ([1, None, 0], True, True),
        ([-5, -4, -4, -9], True, True),
    ],
)
def test_patience_of_two(scores: list[float | None], maximize: bool, stale: bool) -> None:
    trials = [trial(i, score) for i, score in enumerate(scores)]
    assert is_stale(trials, maximize, 2) == stale
    assert not is_stale(trials, maximize, None)


def test_the_recipes_of_the_tests_load(tmp_path: Path) -> None:
    assert load_recipe(write_sweep(tmp_path)).search is not None

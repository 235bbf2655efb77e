"""Which merges free workers help with, and what becomes of a batch when they do."""

from pathlib import Path
from typing import Any

import pytest
from puppets import Puppets, checked, course, failure, statuses

from robustmerge_kit.batch.tasks import Happening, Helped, Merged

LARGE = 10**9
FEW = [Helped(Path("/out"), ("b",))]


class Crew(Puppets):
    """Merges end when all helpers have: what runs is looked at from the end."""

    def wait(self, seconds: float) -> list[Happening]:
        self.running.sort(key=lambda task: task.kind != "help")
        return super().wait(seconds)


def crew(large: str, places: int, **script: Any) -> Crew:
    """An engine; of jobs named in `large` the model is large and has four parts."""
    checks = {("check", name): [checked(name, parts=4, writes=LARGE)] for name in large.split()}
    helps = {("help", name): FEW for name in large.split()}
    return Crew({**checks, **helps, **{("help", name): results for name, results in script.items()}}, places)


def helped(engine: Puppets) -> list[str]:
    return [step.removeprefix("help ") for step in engine.order if step.startswith("help")]


@pytest.mark.parametrize(
    ("parts", "writes", "above", "count"),
    [(4, LARGE, LARGE, 3), (4, LARGE, LARGE + 1, 0), (1, LARGE, 1, 0), (2, LARGE, 1, 1), (9, LARGE, 1, 5)],
)
def test_whether_it_pays(parts: int, writes: int, above: int, count: int) -> None:
    engine = Crew({("check", "a"): [checked("a", parts=parts, writes=writes)], ("help", "a"): FEW}, places=6)
    assert statuses(course(engine, "a", split_above=above)) == "done"
    assert len(helped(engine)) == count
    merging = [task for task in engine.tasks if task.kind == "merge"]
    assert [task.shared for task in merging] == [count > 0]


def test_other_merges_come_first() -> None:
    engine = crew("a b", places=2)
    assert statuses(course(engine, "a b c d")) == "done done done done"
    assert helped(engine) == [], "there was always something better to do"
    engine = crew("a d", places=3)
    assert statuses(course(engine, "a b c d")) == "done done done done"
    first = next(i for i, step in enumerate(engine.order) if step.startswith("help"))
    assert sorted(step for step in engine.order[:first] if step.startswith("merge")) == [f"merge {name}" for name in "abcd"]


def test_helpers_are_shared_out() -> None:
    engine = crew("a b", places=6)
    course(engine, "a b")
    assert sorted(helped(engine)[:4]) == ["a", "a", "b", "b"]


def test_numbers_are_those_of_no_job() -> None:
    engine = crew("a b", places=8)
    course(engine, "a b")
    numbers = [task.number for task in engine.tasks if task.kind == "help"]
    assert min(numbers) == 2
    assert len(set(numbers)) == len(numbers)


def test_what_is_told() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    course(crew("a", places=2), "a", told)
    assert ("helping", {"job": "a", "helpers": 1}) in told
    assert ("helped", {"job": "a", "files": ["b"]}) in told
    assert told.index(("helping", {"job": "a", "helpers": 1})) < told.index(("helped", {"job": "a", "files": ["b"]}))


def test_a_helper_that_ends_is_not_followed_by_another() -> None:
    engine = crew("a", places=2)
    course(engine, "a")
    assert helped(engine) == ["a"], "nothing was left to take"


def test_a_helper_that_dies_is_but_not_for_ever() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    engine = crew("a", places=2, a=["lost"])
    assert statuses(course(engine, "a", told)) == "done"
    assert len(helped(engine)) == 3
    assert sum(event == "worker_lost" for event, _ in told) == 3
    assert not any(event in ("retry", "failed") for event, _ in told), "the merge itself is as well as before"


def test_a_helper_that_fails_harms_nothing() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    assert statuses(course(crew("a", places=2, a=[failure()]), "a", told)) == "done"
    assert ("helped", {"job": "a", "files": [], "reason": "here: wrong"}) in told


def test_a_merge_that_is_tried_again_may_be_helped_again() -> None:
    engine = crew("a", places=2)
    engine.script["merge", "a"] = ["lost", Merged(Path("/out"), False)]
    made = course(engine, "a")
    assert (statuses(made), made.entries[0].attempts) == ("done", 2)
    assert helped(engine) == ["a", "a"]


@pytest.mark.parametrize(("asked", "status"), [(1, "done"), (2, "stopped")])
def test_stopping(asked: int, status: str) -> None:
    """Draining sends no more helpers, and waits for those that are at work; stopping ends all."""
    engine = crew("a", places=2, a=["lost"])
    made = course(engine, "a", stopping=lambda: asked if helped(engine) else 0)
    assert engine.stopped == (asked == 2)
    assert (statuses(made), helped(engine)) == (status, ["a"])


def test_a_retry_that_waits_is_not_kept_waiting() -> None:
    engine = Puppets({("check", "a"): [checked("a", parts=4, writes=LARGE)], ("help", "a"): FEW}, places=2)
    engine.script["merge", "b"] = [failure(transient=True), Merged(Path("/out"), False)]
    assert statuses(course(engine, "b a")) == "done done"
    assert helped(engine) == [], "the place that became free was kept"


def test_a_helper_may_end_after_its_merge() -> None:
    class Late(Puppets):
        def wait(self, seconds: float) -> list[Happening]:
            self.running.sort(key=lambda task: task.kind == "help")
            return super().wait(seconds)

    engine = Late({("check", "a"): [checked("a", parts=3, writes=LARGE)], ("help", "a"): FEW}, places=2)
    assert statuses(course(engine, "a")) == "done"
    assert engine.running == []

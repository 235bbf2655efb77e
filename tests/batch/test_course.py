"""The course of a batch with an engine that does as it is told: order, retries, collisions, stopping."""

from pathlib import Path
from typing import Any

import pytest
from puppets import GIB, Puppets, checked, course, failure, statuses

from robustmerge_kit.batch.summary import lines, summarize
from robustmerge_kit.batch.tasks import Happening, Merged, Progress


def test_all_are_checked_before_any_is_merged():
    engine = Puppets({("check", "b"): [failure()]})
    made = course(engine, "a b c")
    assert engine.order == ["check a", "check b", "check c", "merge a", "merge c"]
    assert statuses(made) == "done failed done"


def test_what_is_done_is_not_merged():
    engine = Puppets({("check", "a"): [checked("a", done=True)], ("merge", "b"): [Merged(Path("/out/b"), True)]})
    assert statuses(course(engine, "a b c")) == "skipped skipped done"
    assert "merge a" not in engine.order


def test_only_check():
    engine = Puppets({})
    assert statuses(course(engine, "a b", only_check=True)) == "waiting waiting"
    assert engine.order == ["check a", "check b"]


RETRIES = {
    "a mistake is not tried again": ([failure()], 2, "failed", 1),
    "a transient fault is": ([failure(transient=True), Merged(Path("/out"), False)], 2, "done", 2),
    "as often as asked": ([failure(transient=True)], 2, "failed", 3),
    "or never": ([failure(transient=True)], 0, "failed", 1),
    "a dead worker is a transient fault": (["lost", "lost", Merged(Path("/out"), False)], 2, "done", 3),
    "a worker that always dies is not": (["lost"], 1, "failed", 2),
    "waiting for another batch is no attempt": ([failure(busy=True)] * 4 + [Merged(Path("/out"), True)], 0, "skipped", 5),
}


@pytest.mark.parametrize("case", RETRIES)
def test_retries(case: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("robustmerge_kit.batch.schedule.BUSY_AGAIN", 0.01)
    results, retries, status, times = RETRIES[case]
    engine = Puppets({("merge", "a"): results})
    made = course(engine, "a b", retries=retries)
    assert statuses(made) == f"{status} done"
    assert engine.order.count("merge a") == times
    if status == "failed":
        assert made.entries[0].failure is not None


def test_checks_are_tried_again_too():
    engine = Puppets({("check", "a"): [failure(transient=True), checked("a")]})
    assert statuses(course(engine, "a")) == "done"
    assert engine.order == ["check a", "check a", "merge a"]


def test_the_pause_doubles_and_others_do_not_wait():
    told: list[tuple[str, dict[str, Any]]] = []
    engine = Puppets({("merge", "a"): ["lost"]}, places=1)
    course(engine, "a b", told, retries=3)
    assert [fields["seconds"] for event, fields in told if event == "retry"] == [0.01, 0.02, 0.04]
    assert engine.order.index("merge b") == engine.order.index("merge a") + 1


def test_attempts_are_counted_for_logs_and_reports():
    engine = Puppets({("merge", "a"): ["lost", Merged(Path("/out"), False)]})
    made = course(engine, "a")
    assert [task.attempt for task in engine.tasks if task.kind == "merge"] == [1, 2]
    assert (made.entries[0].attempts, made.entries[0].history) == (2, ["a.yaml: killed"])


COLLISIONS = {
    "one folder": ({"a": "x", "b": "x", "c": "y"}, "failed failed done", "writes the same folder"),
    "one inside the other": ({"a": "x", "b": "x/y", "c": "y"}, "done failed done", "lies inside the output of a"),
    "side by side": ({"a": "x", "b": "x2", "c": "y"}, "done done done", ""),
}


@pytest.mark.parametrize("case", COLLISIONS)
def test_no_two_jobs_write_one_output(case: str):
    targets, expected, said = COLLISIONS[case]
    made = course(Puppets({("check", name): [checked(target)] for name, target in targets.items()}), "a b c")
    assert statuses(made) == expected
    for entry in made.entries:
        if entry.failure is not None:
            assert said in entry.failure.reason
            assert entry.failure.exit_code == 4


def test_a_target_that_is_done_counts_too():
    script = {("check", "a"): [checked("x", done=True)], ("check", "b"): [checked("x")]}
    assert statuses(course(Puppets(script), "a b")) == "failed failed"


def test_a_job_must_not_read_what_another_writes():
    script = {("check", "b"): [checked("b", inputs=(Path("/in"), Path("/out/a/sub")))]}
    made = course(Puppets(script), "a b")
    assert statuses(made) == "done failed"
    assert "it is the output of a" in made.entries[1].failure.reason  # type: ignore[union-attr]


def test_what_never_fits_is_refused_before_anything_runs():
    script = {("check", "a"): [checked("a", needs=3 * GIB)]}
    engine = Puppets(script, largest=2 * GIB)
    made = course(engine, "a b")
    assert statuses(made) == "failed done"
    assert "a step needs 3221 MB, 2147 MB are left of --memory" in made.entries[0].failure.reason  # type: ignore[union-attr]


def test_fail_fast_lets_running_merges_finish():
    engine = Puppets({("merge", "b"): [failure()]}, places=3)
    assert statuses(course(engine, "a b c d e", fail_fast=True)) == "done failed done done waiting"


def test_fail_fast_starts_no_merge_when_a_recipe_is_broken():
    engine = Puppets({("check", "b"): [failure(code=2)]}, places=1)
    assert statuses(course(engine, "a b c", fail_fast=True)) == "waiting failed waiting"
    assert not any("merge" in step for step in engine.order)


def test_draining_finishes_what_runs_and_begins_nothing():
    asked = 0
    told: list[tuple[str, dict[str, Any]]] = []
    engine = Puppets({})

    def after_the_first_merge() -> None:
        nonlocal asked
        asked = int(any("merge" in step for step in engine.order))

    engine.before_wait = after_the_first_merge
    made = course(engine, "a b c d", told, stopping=lambda: asked)
    assert statuses(made) == "done done waiting waiting"
    assert [event for event, _ in told if event == "draining"] == ["draining"]
    assert not engine.stopped


def test_stopping_ends_what_runs():
    asked = 0
    engine = Puppets({})

    def after_the_first_merge() -> None:
        nonlocal asked
        asked = 2 * any("merge" in step for step in engine.order)

    engine.before_wait = after_the_first_merge
    made = course(engine, "a b c d", stopping=lambda: asked)
    assert engine.stopped
    assert statuses(made) == "done stopped waiting waiting" or statuses(made) == "done stopped stopped waiting"


def test_stopping_while_checking():
    engine = Puppets({})
    assert statuses(course(engine, "a b c", stopping=lambda: 2)) == "waiting waiting waiting"


def test_progress_is_told():
    class Talking(Puppets):
        def wait(self, seconds: float) -> list[Happening]:
            number = self.running[0].number if self.running else 0
            talk: list[Happening] = [Progress(number, 2)] if self.running and self.running[0].kind == "merge" else []
            return [*talk, *super().wait(seconds)]

    told: list[tuple[str, dict[str, Any]]] = []
    course(Talking({}), "a", told)
    assert ("progress", {"job": "a", "sites": 2}) in told


def test_the_summary_for_a_human():
    engine = Puppets({("check", "b"): [failure()], ("check", "c"): [checked("c", done=True)]})
    made = course(engine, "a b c")
    text = lines(summarize(made.entries, 1.5, 2_000_000, 3_000_000, Path("state")))
    assert text[0].startswith("failed   b")
    assert text[1:] == [
        "         here: wrong",
        "3 recipes: 1 done, 1 done before, 1 failed; 1.5 s, peak memory 2 MB of 3 MB",
    ]
    only = course(Puppets({}), "a", only_check=True)
    summary = summarize(only.entries, 0.1, 0, None, Path("state"), only_check=True)
    assert summary["ok"]
    assert lines(summary) == ["to do    a: /out/a", "1 recipes: 1 to do; 0.1 s"]
    assert not summarize(only.entries, 0.1, 0, None, Path("state"))["ok"], "what was not run is not there"

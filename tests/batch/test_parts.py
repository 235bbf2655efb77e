"""A folded model written in parts by several processes: the same bytes and measurements, whoever dies on the way."""

import errno
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
import pytest
from small_adapters import run, sites, write_adapters, write_recipe
from small_bases import all_bytes, tensors, write_base

from robustmerge_kit.errors import InputError
from robustmerge_kit.merge import assist, merge, prepare
from robustmerge_kit.output import Receipt
from robustmerge_kit.plan import Plan, divide
from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.resources import Resources

SHARDS = 4


def case(place: Path, method: str = "linear", output: Any = None, **keys: Any) -> Path:
    write_base(place / "base", tensors(6), shards=SHARDS)
    adapters = write_adapters(place, 3, where=sites(6))
    return write_recipe(place, adapters, method, base_model="base", output={"kind": "model", **(output or {})}, **keys)


def timeless(receipt: Receipt) -> dict[str, Any]:
    """What a receipt says but for times, memory and what an earlier run had done."""
    content = {key: value for key, value in receipt.content.items() if key not in ("timings", "memory")}
    return {**content, "totals": {key: value for key, value in content["totals"].items() if key != "resumed_jobs"}}


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.")]


# --- how a fold is divided --------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "cloned": {},
    "written afresh": {"output": {"dtype": "bfloat16"}},
    "random": {"method": "dare_ties", "parameters": {"density": 0.5}, "seed": 3},
    "two methods": {"overrides": [{"match": "*q_proj", "merge_method": "ties", "parameters": {"density": 0.3}}]},
    "few sites": {"overrides": [{"match": "*up_proj", "parameters": {"weight": 0.0}}]},
}


@pytest.mark.parametrize("name", CASES)
def test_parts_have_no_file_in_common_and_miss_nothing(name: str, tmp_path: Path) -> None:
    plan = prepare(case(tmp_path, **CASES[name]))
    parts = divide(plan)
    assert plan.fold is not None
    assert len(parts) == SHARDS
    folds = [part.fold for part in parts if part.fold is not None]
    assert [file for fold in folds for file in fold.files] == list(plan.fold.files)
    assert sorted(step.site for part in parts for step in part.steps) == sorted(step.site for step in plan.steps)
    assert sorted(copy.tensor for fold in folds for copy in fold.copies) == sorted(copy.tensor for copy in plan.fold.copies)
    for fold in folds:
        written = {copy.tensor for copy in fold.copies} | {change.tensor for change in fold.changes}
        assert written <= fold.specs.keys()


def on_two_files(plan: Plan, first: int, second: int) -> Plan:
    """The plan with a site whose places lie in two files."""
    assert plan.fold is not None
    files = plan.fold.files
    held = [{spec.name for spec in files[number].specs} for number in (first, second)]
    every = [place.tensor for places in plan.fold.places.values() for place in places]
    tensor = [next(name for name in every if name in names) for names in held]
    site = next(site for site, places in plan.fold.places.items() if places[0].tensor == tensor[0])
    places = plan.fold.places[site]
    both = (*places, replace(places[0], tensor=tensor[1]))
    return replace(plan, fold=replace(plan.fold, places={**plan.fold.places, site: both}))


def test_files_that_a_site_joins_stay_together(tmp_path: Path) -> None:
    plan = prepare(case(tmp_path))
    names = [[file.name[10] for file in part.fold.files] for part in divide(on_two_files(plan, 0, 2)) if part.fold]
    assert names == [["1", "3"], ["2"], ["4"]]
    chained = on_two_files(on_two_files(plan, 0, 1), 1, 2)
    assert [len(part.fold.files) for part in divide(chained) if part.fold] == [3, 1]


@pytest.mark.parametrize(
    "keys",
    [{"output": {"rank": {"energy": 0.9}}}, {"method": "ties", "parameters": {"density": 0.3, "scope": "global"}}],
    ids=["ranks", "scope"],
)
def test_what_looks_at_all_sites_first_is_not_divided(keys: dict[str, Any], tmp_path: Path) -> None:
    recipe = case(tmp_path, **keys)
    plan = prepare(recipe)
    assert divide(plan) == (plan,)
    began: list[Any] = []
    merge(load_recipe(recipe), tmp_path / "shared", sharing=began.append)
    assert began == []
    run(recipe, tmp_path / "alone")
    assert all_bytes(tmp_path / "shared") == all_bytes(tmp_path / "alone")


def test_an_adapter_is_not_divided(tmp_path: Path) -> None:
    plan = prepare(write_recipe(tmp_path, write_adapters(tmp_path, 2)))
    assert divide(plan) == (plan,)


# --- several processes ------------------------------------------------------------------------------------------------------


def leader(recipe: str, out: str, log: str, pause: float = 0.0, at: int = -1) -> None:
    """Merge in parts, slowly; die with SIGKILL at the end of a site, counted from 0."""
    _slowly(log, pause, at, lambda observe, took: merge(load_recipe(recipe), Path(out), observe=observe, sharing=took))


def helper(recipe: str, out: str, log: str, pause: float = 0.0, at: int = -1) -> None:
    """Help with that."""

    def help_it(observe: Any, took: Any) -> None:
        until = time.monotonic() + 10

        def waits() -> bool:
            return time.monotonic() < until

        files = assist(load_recipe(recipe), Path(out), resources=Resources(), expected=waits, observe=observe, took=took)
        _note(log, ["end", *files])

    _slowly(log, pause, at, help_it)


def _slowly(log: str, pause: float, at: int, work: Callable[[Any, Any], object]) -> None:
    seen = 0

    def observe(name: str, count: int, nbytes: int) -> None:
        nonlocal seen
        if count:
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            time.sleep(pause)

    work(observe, lambda files: _note(log, list(files)))


def _note(log: str, words: list[str]) -> None:
    with Path(log).open("a") as file:
        file.write(" ".join(words) + "\n")


def began(log: Path) -> list[str]:
    """The files that a process began with."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if not line.startswith("end")]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", CASES)
def test_the_same_bytes_and_the_same_receipt(name: str, tmp_path: Path) -> None:
    recipe = case(tmp_path, **CASES[name])
    whole = run(recipe, tmp_path / "a" / "out")
    arguments = [str(recipe), str(tmp_path / "b" / "out")]
    both = [children.start(each, *arguments, str(tmp_path / each.__name__), 0.02) for each in (leader, helper)]
    assert [children.end(child) for child in both] == [0, 0]
    assert began(tmp_path / "leader")
    assert began(tmp_path / "helper")
    assert len(began(tmp_path / "leader")) + len(began(tmp_path / "helper")) == SHARDS
    assert all_bytes(whole.path) == all_bytes(tmp_path / "b" / "out")
    shared = Receipt(whole.path, json.loads((tmp_path / "b" / "out" / "rmkit.json").read_text()))
    assert timeless(shared) == json.loads(json.dumps(timeless(whole)))
    assert shared.content["totals"]["resumed_jobs"] == 0
    assert leftovers(tmp_path / "b" / "out") == []


def test_the_work_of_a_helper_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "out"
    whole = run(recipe, tmp_path / "alone")
    arguments = [str(recipe), str(out)]
    leads = children.start(leader, *arguments, str(tmp_path / "led"), 0.15)
    killed = children.start(helper, *arguments, str(tmp_path / "helped"), 0.0, 1)
    assert children.end(killed) == -signal.SIGKILL
    assert children.end(leads) == 0
    (lost,) = began(tmp_path / "helped")
    assert lost in began(tmp_path / "led"), "the leader took the part over"
    assert all_bytes(out) == all_bytes(whole.path)
    receipt = Receipt(out, json.loads((out / "rmkit.json").read_text()))
    assert receipt.content["totals"]["resumed_jobs"] > 0
    assert timeless(receipt) == json.loads(json.dumps(timeless(whole)))


@pytest.mark.parametrize("shared", [True, False], ids=["in parts again", "in one piece"])
def test_a_leader_that_was_killed_is_followed_by_another(shared: bool, tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "out"
    whole = all_bytes(run(recipe, tmp_path / "alone").path)
    arguments = [str(recipe), str(out)]
    killed = children.start(leader, *arguments, str(tmp_path / "led"), 0.1, 2)
    helps = children.start(helper, *arguments, str(tmp_path / "helped"), 0.1)
    assert children.end(killed) == -signal.SIGKILL
    assert children.end(helps) == 0, "it does what it can"
    assert not out.exists()
    receipt = run(recipe, out, sharing=(lambda files: None) if shared else None)
    assert receipt.content["totals"]["resumed_jobs"] > 2, "what leader and helper had done"
    assert all_bytes(out) == whole
    assert leftovers(out) == []


def test_parts_go_on_with_what_was_begun_in_one_piece(tmp_path: Path) -> None:
    recipe, out, log = case(tmp_path), tmp_path / "outputs" / "out", tmp_path / "changes"
    whole = all_bytes(run(recipe, tmp_path / "alone").path)
    children.end(children.start(children.killed_at, -1, ["run", str(recipe), str(tmp_path / "trial"), "-q"], str(log)))
    moment = int(0.4 * len(log.read_text().splitlines()))
    killed = children.start(children.killed_at, moment, ["run", str(recipe), str(out), "-q"], str(tmp_path / "n"))
    assert children.end(killed) == -signal.SIGKILL
    receipt = run(recipe, out, sharing=lambda files: None)
    assert receipt.content["totals"]["resumed_jobs"] > 0
    assert all_bytes(out) == whole


def test_helpers_leave_a_leader_that_gives_up_and_nothing_remains(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "out"
    arguments = [str(recipe), str(out)]
    helps = children.start(helper, *arguments, str(tmp_path / "helped"), 0.3)

    def fail(name: str, count: int, nbytes: int) -> None:
        until(lambda: bool(began(tmp_path / "helped")))
        raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        merge(load_recipe(recipe), out, observe=fail, sharing=lambda files: None)
    assert leftovers(out) == []
    assert children.end(helps) == 0
    assert len(began(tmp_path / "helped")) == 1
    assert not out.exists()
    assert leftovers(out) == []


def test_helpers_keep_away_from_what_is_made_from_something_else(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "out"
    other = tmp_path / "other"
    other.mkdir()
    different = write_recipe(other, [tmp_path / "adapter0"], base_model="../base", output={"kind": "model"})
    leads = children.start(leader, str(recipe), str(out), str(tmp_path / "led"), 0.1)
    until(lambda: bool(began(tmp_path / "led")))
    files = assist(load_recipe(different), out, resources=Resources(), expected=lambda: not out.exists())
    assert files == ()
    assert children.end(leads) == 0


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = case(tmp_path)
    whole = all_bytes(run(recipe, tmp_path / "alone").path)

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    began: list[Any] = []
    receipt = merge(load_recipe(recipe), tmp_path / "out", sharing=began.append)
    assert began == [], "in one piece"
    assert all_bytes(receipt.path) == whole
    shutil.rmtree(receipt.path)

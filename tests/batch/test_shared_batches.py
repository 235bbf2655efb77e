"""Batches of real workers that share a folded model: who wrote what, and that a kill on the way changes no byte."""

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from many_recipes import finish, start
from shared_models import SHARDS, leader_and_helper, merged_alone, recipe, weights, write_models
from slow_plugin import install
from test_stopping import until


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A slow recipe and a quick one, whose worker is free soon."""
    (tmp_path / "plugin").mkdir()
    install(tmp_path / "plugin")
    write_models(tmp_path)
    recipe(tmp_path, "quick", merge_method="linear", output={"kind": "adapter"})
    return tmp_path


def batch(place: Path, *flags: str) -> "subprocess.Popen[str]":
    arguments = ["models", "--out", "merged", "--json", "-j", "2", "--events", "events.jsonl", "--split-above", "1B", *flags]
    return start(arguments, place, PYTHONPATH=str(place / "plugin"))


def events(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]


def parts_begun(place: Path) -> list[str]:
    log = (place / "rmkit-batch" / "logs" / "slow.log").read_text()
    return [line.rpartition(" ")[2] for line in log.splitlines() if " part: " in line]


def test_a_free_worker_helps(place: Path) -> None:
    process = batch(place)
    until(lambda: at_work(process, place) != [], process)
    (place / "go").touch()
    code, out, err = finish(process)
    assert code == 0, err
    (helped,) = [event for event in events(place) if event["event"] == "helped"]
    assert helped["job"] == "slow"
    assert 1 <= len(helped["files"]) < SHARDS
    assert len(parts_begun(place)) == SHARDS
    assert weights(place / "merged" / "slow") == merged_alone(place)
    assert "slow: free workers help, 1 at the moment" in err
    assert f"slow: a helper wrote {len(helped['files'])} files" in err
    receipt = json.loads((place / "merged" / "slow" / "rmkit.json").read_text())
    assert (receipt["totals"]["sites"], receipt["totals"]["resumed_jobs"]) == (12, 0)
    assert json.loads(out)["memory"]["peak"] <= json.loads(out)["memory"]["budget"]
    assert not list((place / "merged").glob(".*"))


def at_work(process: "subprocess.Popen[str]", place: Path) -> list[psutil.Process]:
    """Leader and helper, once both have a part in hands."""
    return leader_and_helper(psutil.Process(process.pid).children(recursive=True), place / "merged" / "slow")


@pytest.mark.parametrize("victim", ["leader", "helper"])
def test_a_killed_worker_costs_time_and_nothing_else(victim: str, place: Path) -> None:
    process = batch(place, "--retries", "3")
    found: list[psutil.Process] = []
    until(lambda: bool(found.extend(at_work(process, place)) or found), process)
    found[victim == "helper"].kill()
    (place / "go").touch()
    code, out, err = finish(process)
    jobs = {job["name"]: job for job in json.loads(out)["jobs"]}
    receipt = json.loads((place / "merged" / "slow" / "rmkit.json").read_text())
    assert code == 0, err
    lost = [event for event in events(place) if event["event"] == "worker_lost"]
    assert [event["job"] for event in lost] == ["slow"]
    assert jobs["slow"]["attempts"] == (2 if victim == "leader" else 1), "only the leader's death is an attempt"
    assert weights(place / "merged" / "slow") == merged_alone(place)
    assert receipt["totals"]["resumed_jobs"] > 0, "what the one that died had done"
    assert not list((place / "merged").glob(".*"))


def test_what_was_stopped_is_gone_on_with(place: Path) -> None:
    process = batch(place)
    until(lambda: at_work(process, place) != [], process)
    process.terminate()
    until(lambda: any(event["event"] == "draining" for event in events(place)), process)
    process.terminate()
    until(lambda: any(event["event"] == "stopping" for event in events(place)), process)
    (place / "go").touch()
    code, out, _ = finish(process, 60)
    assert (code, json.loads(out)["counts"]["stopped"]) == (143, 1)
    code, out, _ = finish(batch(place))
    assert (code, json.loads(out)["counts"]["done"]) == (0, 1)
    receipt = json.loads((place / "merged" / "slow" / "rmkit.json").read_text())
    assert receipt["totals"]["resumed_jobs"] > 0, "what leader and helper had done by then"
    assert weights(place / "merged" / "slow") == merged_alone(place)
    assert not list((place / "merged").glob(".*"))

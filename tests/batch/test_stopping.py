"""Signals, dead parents, rivals, crashes, a Hub that recovers: what a batch on a server lives through."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from many_recipes import contents, environment, finish, start
from slow_plugin import install
from small_adapters import sites, write_adapter, write_adapters

sys.path.insert(0, str(Path(__file__).parents[1] / "inputs"))
from hub_stub import Hub, serving

JOBS = 5


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Slow recipes for adapters of four sites."""
    write_adapters(tmp_path, 2, where=sites(2))
    (tmp_path / "plugin").mkdir()
    install(tmp_path / "plugin")
    (tmp_path / "recipes").mkdir()
    for number in range(JOBS):
        recipe(tmp_path, f"job{number}", parameters={"seconds": 0.3}, seed=number)
    return tmp_path


def recipe(place: Path, name: str, method: str = "slow", **keys: Any) -> None:
    adapters = ["../adapter0", "../adapter1"]
    (place / "recipes" / f"{name}.yaml").write_text(json.dumps({"merge_method": method, "adapters": adapters, **keys}))


def batch(place: Path, *flags: str, **more: str) -> "subprocess.Popen[str]":
    return start(["recipes", "--out", "merged", "--json", "-j", "2", *flags], place, PYTHONPATH=str(place / "plugin"), **more)


def until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def writing(place: Path) -> bool:
    """Whether a merge has begun to write."""
    return any((place / "merged").glob(".*.rmkit-part-*/*"))


def clean(place: Path) -> bool:
    return not list((place / "merged").glob(".*"))


def test_signals_drain_and_stop(place: Path) -> None:
    process = batch(place)
    until(lambda: writing(place), process)
    os.killpg(process.pid, signal.SIGTERM)  # as systemd and Slurm do
    code, out, err = finish(process)
    counts = json.loads(out)["counts"]
    assert (code, counts) == (143, {"done": 2, "skipped": 0, "failed": 0, "stopped": 0, "waiting": JOBS - 2})
    assert "finishing what runs" in err
    assert len(contents(place / "merged")) == 2
    assert clean(place)

    process = batch(place)
    until(lambda: writing(place), process)
    start_of_end = time.monotonic()
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, twice
        time.sleep(0.1)
    code, out, err = finish(process)
    counts = json.loads(out)["counts"]
    assert (code, counts) == (130, {"done": 0, "skipped": 2, "failed": 0, "stopped": 2, "waiting": 1})
    assert time.monotonic() - start_of_end < 10
    assert "stopping what runs" in err
    assert len(contents(place / "merged")) == 2
    assert clean(place), "what was stopped leaves nothing"

    process = batch(place, "--grace", "0.05", "-q")
    until(lambda: writing(place), process)
    process.terminate()
    code, out, err = finish(process)
    assert (code, json.loads(out)["counts"]["stopped"], err) == (143, 2, "")
    assert clean(place)

    code, out, _ = finish(batch(place))
    assert (code, json.loads(out)["counts"]["done"]) == (0, 3)
    assert clean(place)


def test_workers_do_not_outlive_a_batch_that_is_killed(place: Path) -> None:
    process = batch(place)
    until(lambda: writing(place), process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 3
    process.kill()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    finish(process)
    assert all("adapter_model.safetensors" in files for files in contents(place / "merged").values())
    assert not any("part" in path.name for path in (place / "merged").iterdir()), "they clean up even then"


def test_two_batches_share_the_work(place: Path) -> None:
    both = [batch(place, "--state", f"state{i}", "-j", "1") for i in range(2)]
    results = [finish(process) for process in both]
    assert [code for code, _, _ in results] == [0, 0], results
    jobs = [{job["name"]: job["status"] for job in json.loads(out)["jobs"]} for _, out, _ in results]
    for name in jobs[0]:
        assert sorted(each[name] for each in jobs) == ["done", "skipped"], "each output is written once"
    assert clean(place)


def test_crashes_and_a_hub_that_recovers(place: Path) -> None:
    for path in (place / "recipes").iterdir():
        path.unlink()
    remote = write_adapter(place / "remote", 5, where=sites(2))
    recipe(place, "always", "deadly", parameters={"mark": ""})
    recipe(place, "once", "deadly", parameters={"mark": str(place / "mark")})
    recipe(place, "never")
    recipe(place, "hub", "linear", adapters=["org/lora", "../adapter0"])
    recipe(place, "lost", "linear", adapters=["org/nothing", "../adapter0"])
    files = {path.name: path.read_bytes() for path in remote.iterdir()}
    hub = Hub({"org/lora": files}, broken={"org/lora"})
    with serving(hub):
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "0"}
        process = batch(place, "--retries", "1", "--events", "events.jsonl", **settings)
        until(lambda: any("org/lora" in path for _, path, _ in hub.requests), process)
        hub.broken.clear()
        code, out, _ = finish(process)
    jobs = {job["name"]: job for job in json.loads(out)["jobs"]}
    assert code == 1
    assert {name: job["status"] for name, job in jobs.items()} == {
        "always": "failed",
        "once": "done",
        "never": "done",
        "hub": "done",
        "lost": "failed",
    }
    assert "its worker was killed by SIGKILL" in jobs["always"]["errors"][0]["what"]
    assert (jobs["always"]["attempts"], jobs["once"]["attempts"]) == (2, 2)
    told = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    retried = {event["job"]: event["reason"] for event in told if event["event"] == "retry"}
    assert set(retried) == {"always", "once", "hub"}, "a repository that is not there is not asked for again"
    assert "500" in retried["hub"]


def test_a_budget_that_is_too_small(place: Path) -> None:
    code, out, err = finish(batch(place, "--memory", "90MB"))
    assert code == 2
    assert "--memory 90MB: one worker takes" in err
    assert json.loads(out)["exit_code"] == 2
    assert not (place / "merged").exists()


def test_a_terminal_shows_bars(place: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    command = [sys.executable, "-m", "robustmerge_kit", "batch", "recipes", "--out", "merged", "-j", "1"]
    env = environment(PYTHONPATH=str(place / "plugin"), COLUMNS="120", TERM="xterm")
    process = subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        try:
            while piece := os.read(ours, 4096):
                shown.extend(piece)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(300) == 0
    reader.join(10)
    os.close(ours)
    text = shown.decode()
    for piece in ("checking:", "merging:", f"{JOBS}/{JOBS}", "job3:", "site/s]", "job3: done in"):
        assert piece in text

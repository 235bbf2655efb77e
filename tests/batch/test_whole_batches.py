"""Batches of real merges in real workers: what appears, what is said, what a kill leaves, what the same command does again."""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from many_recipes import contents, finish, start, write_fifty

KILLS = int(os.environ.get("RMKIT_BATCH_KILLS", "2"))
"""How often the whole batch, and how often one of its workers, is killed at a random moment; 20 for a thorough run."""

BUDGET = 700_000_000


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob(".*rmkit-*"))


def anonymous(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
    except OSError:
        return 0


class Watch(threading.Thread):
    """The largest sum of anonymous memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak = 0
        self.start()

    def run(self) -> None:
        while True:
            try:
                family = [self.process, *self.process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, sum(map(anonymous, family)))
            time.sleep(0.1)


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole batch, once."""
    place = tmp_path_factory.mktemp("fifty")
    _, broken = write_fifty(place)
    command = ["recipes", "--out", "merged", "--memory", f"{BUDGET}", "-j", "2", "--json", "--events", "events.jsonl"]
    process = start(command, place)
    watch = Watch(process.pid)
    code, out, err = finish(process)
    return {
        "place": place,
        "broken": broken,
        "code": code,
        "summary": json.loads(out),
        "lines": err,
        "peak": watch.peak,
        "merged": contents(place / "merged"),
    }


def test_exactly_the_good_ones_appear(fifty: dict[str, Any]) -> None:
    assert fifty["code"] == 1
    good = {path.stem for path in (fifty["place"] / "recipes").glob("good*")}
    assert len(good) == 40
    assert set(fifty["merged"]) == good
    there = {path.name for path in (fifty["place"] / "merged").iterdir()}
    assert there == good | {"bad_taken"}
    assert fifty["summary"]["counts"] == {"done": 40, "skipped": 0, "failed": 10, "stopped": 0, "waiting": 0}


def test_the_summary_names_the_ten_with_reasons(fifty: dict[str, Any]) -> None:
    failed = {job["name"]: job for job in fifty["summary"]["jobs"] if job["status"] == "failed"}
    assert set(failed) == set(fifty["broken"])
    for name, said in fifty["broken"].items():
        assert said in " ".join(error["what"] for error in failed[name]["errors"]), name
        assert failed[name]["attempts"] <= 1, "a mistake is not tried again"
        log = Path(failed[name]["log"]).read_text()
        assert said in log
    kinds = {failed[name]["exit_code"] for name in failed}
    assert kinds == {2, 3, 4, 5}
    taken = fifty["place"] / "merged" / "bad_taken"
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_mistakes_show_before_any_merge_starts(fifty: dict[str, Any]) -> None:
    told = events(fifty["place"] / "events.jsonl")
    first = next(i for i, event in enumerate(told) if event["event"] == "started")
    failed_before = {event["job"] for event in told[:first] if event["event"] == "failed"}
    assert failed_before == set(fifty["broken"]) - {"bad_numbers"}, "only numbers can show NaN"
    assert [event["event"] for event in (told[0], told[-1])] == ["batch", "end"]
    assert {event["event"] for event in told} <= {
        *("batch", "checks", "merges", "checking", "started", "checked", "skipped", "done", "failed"),
        *("retry", "worker_lost", "busy", "draining", "stopping", "stopped", "end"),
    }


def test_memory_stays_within_the_budget(fifty: dict[str, Any]) -> None:
    assert 0 < fifty["peak"] <= BUDGET
    assert 0 < fifty["summary"]["memory"]["peak"] <= BUDGET


def test_plain_lines_say_one_thing_about_each(fifty: dict[str, Any]) -> None:
    lines = fifty["lines"].splitlines()
    assert lines[0] == "checking 50 recipes"
    assert sum(": done in " in line for line in lines) == 40
    assert sum(": failed: " in line for line in lines) == 10
    assert lines[-1].startswith("[50/50]")


def test_the_same_command_skips_what_is_done(fifty: dict[str, Any]) -> None:
    place = fifty["place"]
    before = {path: path.stat().st_mtime_ns for path in (place / "merged").rglob("*")}
    changed = place / "recipes" / "good00a.yaml"
    changed.write_text(changed.read_text() + "\n# a remark\n")
    (place / "merged" / "good01a" / "adapter_config.json").unlink()
    (place / "merged" / ".good02a.rmkit-claim").touch()
    process = start(["recipes", "--out", "merged", "--json", "-j", "1"], place)
    code, out, _ = finish(process)
    summary = json.loads(out)
    assert code == 1
    assert summary["counts"] == {"done": 0, "skipped": 38, "failed": 12, "stopped": 0, "waiting": 0}
    what = {job["name"]: job["errors"][0]["what"] for job in summary["jobs"] if job["status"] == "failed"}
    assert "made from another recipe" in what["good00a"]
    assert "adapter_config.json is missing" in what["good01a"]
    assert leftovers(place / "merged") == []
    assert {path: path.stat().st_mtime_ns for path in before if path.exists() and "good01a" not in str(path)} == {
        path: when for path, when in before.items() if "good01a" not in str(path)
    }


# --- kills ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """The good recipes, none done."""
    write_fifty(tmp_path)
    for recipe in (tmp_path / "recipes").glob("bad*"):
        recipe.unlink()
    return tmp_path


def until(log: Path, event: str, number: int, process: "subprocess.Popen[str]") -> bool:
    """Wait until an event has happened so many times; False when the batch has ended before."""
    deadline = time.monotonic() + 300
    while sum(each["event"] == event for each in events(log)) < number:
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(finish(process))
        time.sleep(0.005)
    return True


@pytest.mark.slow
def test_a_batch_killed_again_and_again_ends_in_the_same_bytes(good: Path, fifty: dict[str, Any]) -> None:
    chance = random.Random(time.time_ns())
    command = ["recipes", "--out", "merged", "-j", "2", "--json", "-q"]
    killed = 0
    for trial in range(KILLS):
        log = good / f"{trial}.jsonl"
        process = start([*command, "--events", str(log)], good)
        until(log, "done", chance.randint(0, 2), process)
        until(log, "started", 1, process)
        time.sleep(chance.uniform(0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        killed += finish(process)[0] == -signal.SIGKILL
        for name, files in contents(good / "merged").items():
            assert files == fifty["merged"][name], "what has its final name is whole"
    code, text, err = finish(start(command, good))
    assert (code, err) == (0, "")
    assert contents(good / "merged") == fifty["merged"]
    assert leftovers(good / "merged") == []
    counts = json.loads(text)["counts"]
    assert counts["done"] + counts["skipped"] == 40
    assert killed
    print(f"killed {killed} times; the last run found {counts['skipped']} done")


def offspring(process: "subprocess.Popen[str]") -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The living processes of a batch: those that fork workers, and the workers, orphans too."""
    found: list[psutil.Process] = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            each = psutil.Process(pid)
            if pid != process.pid and os.getsid(pid) == process.pid and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    nurseries = [each for each in found if each.ppid() == process.pid]
    return nurseries, [each for each in found if each not in nurseries]


def test_killed_workers_cost_attempts_and_nothing_else(good: Path, fifty: dict[str, Any]) -> None:
    chance = random.Random(time.time_ns())
    log = good / "events.jsonl"
    process = start(["recipes", "--out", "merged", "-j", "2", "--json", "-q", "--events", str(log), "--retries", "30"], good)
    assert until(log, "started", 1, process)
    killed = 0
    while killed < KILLS and until(log, "done", 1 + killed * 30 // KILLS, process):
        time.sleep(chance.uniform(0, 0.1))
        nurseries, workers = offspring(process)
        if killed == KILLS // 2 and nurseries:
            nurseries[0].kill()  # its workers go on, and others come from another one when they die
        if workers:
            chance.choice(workers).kill()
            killed += 1
    code, text, err = finish(process, 600)
    assert (code, err) == (0, "")
    assert contents(good / "merged") == fifty["merged"]
    assert leftovers(good / "merged") == []
    lost = [event for event in events(log) if event["event"] == "worker_lost"]
    attempts = {job["name"]: job["attempts"] for job in json.loads(text)["jobs"]}
    assert sum(attempts.values()) == 40 + len(lost)
    assert killed == KILLS
    assert lost or KILLS < 5, "of two workers that nearly always have something to do, one was killed at it"
    print(f"killed {killed} workers, {len(lost)} of them at work")

"""A killed, interrupted or rivalled run leaves nothing partial under the final name, and the next run cleans up."""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import children
import pytest
from small_adapters import content, read_deltas, run, sites, write_adapters, write_recipe

KILLS = int(os.environ.get("RMKIT_KILLS", "8"))
"""Moments tried per scenario; 0: every single change of the disk."""


def case(place: Path) -> Path:
    return write_recipe(place, write_adapters(place, 2, where=sites(3)), "linear")


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if ".rmkit-" in path.name)


def moments(place: Path, recipe: Path, out: Path, swap: bool, flags: list[str]) -> list[int]:
    """Which changes of the disk to die before: all renames and what follows them, the last, and some spread over the rest."""
    log = place / "changes"
    children.end(children.start(children.killed_at, -1, ["run", str(recipe), str(out), "-q", *flags], str(log), swap))
    changes = log.read_text().splitlines()
    total = len(changes)
    assert total > 15
    if KILLS == 0:
        return list(range(total))
    renames = {i + after for i, event in enumerate(changes) if event == "os.rename" for after in (0, 1)}
    spread = {round(i * (total - 1) / (KILLS - 1)) for i in range(KILLS)}
    return sorted({*spread, *(i for i in renames if i < total)})


def test_kill_9_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "outputs" / "merged"
    whole = content(run(recipe, tmp_path / "whole").path)
    for moment in moments(tmp_path, recipe, tmp_path / "trial", True, []):
        child = children.start(children.killed_at, moment, ["run", str(recipe), str(out), "-q"], str(tmp_path / "n"))
        killed = children.end(child) == -signal.SIGKILL
        assert killed or out.exists()
        if out.exists():
            assert content(out) == whole, moment
            json.loads((out / "rmkit.json").read_text())
        run(recipe, out, overwrite=out.exists())
        assert content(out) == whole
        assert leftovers(out) == [], moment
        for path in [*out.iterdir(), out]:
            path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize("swap", [True, False], ids=["exchange", "journal"])
def test_kill_9_during_a_replacement_leaves_the_old_folder_or_the_new_one(swap: bool, tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "outputs" / "merged"
    old = write_recipe(tmp_path / "adapter0", [tmp_path / "adapter1"], "linear")
    before = content(run(old, tmp_path / "old").path)
    after = content(run(recipe, tmp_path / "new").path)
    run(old, tmp_path / "trial")
    seen: set[str] = set()
    for moment in moments(tmp_path, recipe, tmp_path / "trial", swap, ["--overwrite"]):
        run(old, out, overwrite=True)
        arguments = ["run", str(recipe), str(out), "-q", "--overwrite"]
        children.end(children.start(children.killed_at, moment, arguments, str(tmp_path / "n"), swap))
        if swap or out.exists():
            found = content(out)
            assert found in (before, after), moment
            seen.add("old" if found == before else "new")
        else:
            seen.add("between")
            assert any("swap.json" in name for name in leftovers(out))
        run(recipe, out, overwrite=True)
        assert content(out) == after
        assert leftovers(out) == [], moment
    assert seen == ({"old", "new"} if swap else {"old", "between", "new"})


def test_kill_9_at_random_moments_of_a_slow_run(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "merged"
    for _ in range(2 if KILLS else 20):
        child = children.start(children.command, ["run", str(recipe), str(out), "-q", "--overwrite"], os.devnull, 0.01)
        time.sleep(random.uniform(0.05, 0.5))
        child.kill()
        children.end(child)
        if out.exists():
            assert set(read_deltas(out)) == set(sites(3))
    run(recipe, out, overwrite=True)
    assert leftovers(out) == []


SIGNALS = {"Ctrl-C": (signal.SIGINT, 130, "interrupted"), "termination": (signal.SIGTERM, 143, "terminated")}


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("workers", [1, 4])
def test_a_signal_ends_the_run_and_removes_what_it_wrote(name: str, workers: int, tmp_path: Path) -> None:
    number, code, word = SIGNALS[name]
    recipe, out, log = case(tmp_path), tmp_path / "outputs" / "merged", tmp_path / "log"
    arguments = ["run", str(recipe), str(out), "-j", str(workers)]
    child = children.start(children.command, arguments, str(log), 0.25)
    deadline = time.monotonic() + 20
    while not (out.parent.exists() and any(out.parent.glob(".merged.rmkit-part-*/*.safetensors"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    assert child.pid is not None
    start = time.monotonic()
    os.kill(child.pid, number)
    assert children.end(child) == code
    assert time.monotonic() - start < 5
    assert list(out.parent.iterdir()) == []
    text = log.read_text()
    assert f"{word}; nothing was written" in text
    assert "Traceback" not in text


def test_two_runs_on_one_target(tmp_path: Path) -> None:
    recipe, out, log = case(tmp_path), tmp_path / "merged", tmp_path / "log"
    first = children.start(children.command, ["run", str(recipe), str(out), "-q"], os.devnull, 0.05)
    deadline = time.monotonic() + 20
    while not any(tmp_path.glob(".merged.rmkit-part-*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = children.start(children.command, ["run", str(recipe), str(out)], str(log))
    assert children.end(second) == 5
    assert f"{out}: another rmkit run is writing it" in log.read_text()
    assert children.end(first) == 0
    assert set(read_deltas(out)) == set(sites(3))
    assert leftovers(out) == []


@pytest.mark.parametrize("swap", [True, False], ids=["exchange", "journal"])
def test_a_reader_never_sees_half_a_replacement(swap: bool, tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "merged"
    run(recipe, out)
    names = {path.name for path in out.iterdir()}
    done, gaps, odd = threading.Event(), 0, []

    def poll() -> None:
        nonlocal gaps
        while not done.is_set():
            try:
                found = set(os.listdir(out))  # noqa: PTH208
            except FileNotFoundError:
                gaps += 1
                continue
            if found != names:
                odd.append(found)
            time.sleep(0)

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for _ in range(3):
            child = children.start(children.command, ["run", str(recipe), str(out), "-q", "--overwrite"], os.devnull, 0.0, swap)
            assert children.end(child) == 0
    finally:
        done.set()
        reader.join()
    assert swap is False or gaps == 0
    assert [found for found in odd if found] == []

"""A fold that is killed, terminated or out of disk space goes on where it was and ends in the same bytes."""

import errno
import json
import os
import random
import signal
import time
from pathlib import Path

import children
import pytest
from small_adapters import run, sites, write_adapter, write_adapters, write_recipe
from small_bases import all_bytes, read_weights, tensors, write_base

KILLS = int(os.environ.get("RMKIT_KILLS", "12"))
"""Moments tried; the full proof takes 200."""


def case(place: Path, method: str = "ties", **output: object) -> Path:
    write_base(place / "base", tensors(6), shards=4)
    adapters = write_adapters(place, 3, where=sites(6))
    parameters = {"density": 0.5} if method == "ties" else {}
    return write_recipe(place, adapters, method, parameters=parameters, base_model="base", output={"kind": "model", **output})


def stages(out: Path) -> list[Path]:
    return sorted(path for path in out.parent.iterdir() if ".rmkit-" in path.name)


def killed_late(place: Path, recipe: Path, out: Path, share: float = 0.7) -> None:
    """A run that died when this share of its changes of the disk was done."""
    log = place / "changes"
    children.end(children.start(children.killed_at, -1, ["run", str(recipe), str(place / "trial"), "-q"], str(log)))
    moment = int(share * len(log.read_text().splitlines()))
    child = children.start(children.killed_at, moment, ["run", str(recipe), str(out), "-q"], str(place / "n"))
    assert children.end(child) == -signal.SIGKILL
    assert len(stages(out)) == 1


def finish(recipe: Path, out: Path) -> None:
    """The same command again, unless the killed one had come to its end."""
    if not out.exists():
        run(recipe, out)


@pytest.mark.parametrize("output", [{}, {"dtype": "bfloat16"}], ids=["cloned", "streamed"])
def test_kill_9_at_every_kind_of_moment(output: dict[str, object], tmp_path: Path) -> None:
    recipe, out = case(tmp_path, **output), tmp_path / "outputs" / "model"
    whole = all_bytes(run(recipe, tmp_path / "whole").path)
    log = tmp_path / "changes"
    children.end(children.start(children.killed_at, -1, ["run", str(recipe), str(tmp_path / "trial"), "-q"], str(log)))
    total = len(log.read_text().splitlines())
    assert total > 40
    draw = random.Random(7)
    moments = range(total) if total < KILLS else sorted({0, total - 1, *draw.sample(range(total), KILLS - 2)})
    resumed = 0
    for moment in moments:
        child = children.start(children.killed_at, moment, ["run", str(recipe), str(out), "-q"], str(tmp_path / "n"))
        killed = children.end(child) == -signal.SIGKILL
        assert killed or out.exists()
        if out.exists():
            assert all_bytes(out) == whole, moment
        finish(recipe, out)
        assert all_bytes(out) == whole, moment
        assert stages(out) == [], moment
        resumed += json.loads((out / "rmkit.json").read_text())["totals"].get("resumed_jobs", 0)
        for path in sorted(out.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        out.rmdir()
    assert resumed > 0


def test_kill_9_at_random_times_of_a_slow_run(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "model"
    whole = all_bytes(run(recipe, tmp_path / "whole").path)
    for _ in range(max(2, KILLS // 8)):
        child = children.start(children.command, ["run", str(recipe), str(out), "-q", "-j", "2"], os.devnull, 0.01)
        time.sleep(random.uniform(0.1, 0.8))
        child.kill()
        children.end(child)
        if out.exists():
            break
    finish(recipe, out)
    assert all_bytes(out) == whole


def test_a_terminated_run_keeps_what_it_did_and_says_so(tmp_path: Path) -> None:
    recipe, out, log = case(tmp_path), tmp_path / "outputs" / "model", tmp_path / "log"
    child = children.start(children.command, ["run", str(recipe), str(out)], str(log), 0.05)
    deadline = time.monotonic() + 20
    while not any(
        "job" in json.loads(line)
        for journal in out.parent.glob(".model.rmkit-part-*/.rmkit-journal")
        for line in journal.read_text().splitlines()
        if line.endswith("}")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGTERM)
    assert children.end(child) == 143
    assert len(stages(out)) == 1
    assert "the same command goes on" in log.read_text()
    receipt = run(recipe, out)
    assert receipt.content["totals"]["resumed_jobs"] > 0
    assert stages(out) == []


def test_changed_inputs_are_not_gone_on_with(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "model"
    killed_late(tmp_path, recipe, out)
    write_adapter(tmp_path / "adapter0", 40, where=sites(6))
    fresh = all_bytes(run(recipe, tmp_path / "fresh").path)
    receipt = run(recipe, out)
    assert receipt.content["totals"]["resumed_jobs"] == 0
    assert all_bytes(out) == fresh
    assert stages(out) == []


def test_damage_to_what_was_finished_is_noticed(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "model"
    whole = all_bytes(run(recipe, tmp_path / "whole").path)
    killed_late(tmp_path, recipe, out)
    (stage,) = stages(out)
    for path in stage.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start:] = bytes(len(data) - start)
        path.write_bytes(data)
    run(recipe, out)
    damaged = all_bytes(out)
    changed = {f"{site}.weight" for site in sites(6)}
    for name in changed:
        assert (read_weights(out)[name] == read_weights(tmp_path / "whole")[name]).all()
    assert damaged.keys() == whole.keys()


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustmerge_kit.errors import OutputError

    recipe, out = case(tmp_path, dtype="bfloat16"), tmp_path / "model"
    whole = all_bytes(run(recipe, tmp_path / "whole").path)
    real, count = os.pwrite, 0

    def full(*arguments: object) -> int:
        nonlocal count
        count += 1
        if count > 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        run(recipe, out)
    assert caught.value.exit_code == 5
    assert not out.exists()
    assert len(stages(out)) == 1
    monkeypatch.setattr(os, "pwrite", real)
    receipt = run(recipe, out)
    assert receipt.content["totals"]["resumed_jobs"] > 0
    assert all_bytes(out) == whole


def test_restart_discards_what_was_done(tmp_path: Path) -> None:
    recipe, out = case(tmp_path), tmp_path / "model"
    killed_late(tmp_path, recipe, out)
    log = tmp_path / "log"
    assert children.end(children.start(children.command, ["run", str(recipe), str(out), "--restart", "--json"], str(log))) == 0
    assert json.loads((out / "rmkit.json").read_text())["totals"]["resumed_jobs"] == 0
    assert stages(out) == []

"""The output folder: refused, replaced, repaired; its modes; full, forbidden and missing places."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_adapters import run, sites, write_adapters, write_recipe

from robustmerge_kit.errors import OutputError
from robustmerge_kit.output import folder as room
from robustmerge_kit.output import staged


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "adapter0", write_adapters(tmp_path, 2), "linear")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of its own for outputs."""
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def filled(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "old.txt").write_text("old")
    return folder


# --- what is in the way -----------------------------------------------------------------------------------------------


def test_an_existing_folder_is_refused_and_left_alone(recipe: Path, place: Path) -> None:
    filled(place / "out")
    with pytest.raises(OutputError, match=r"out: exists already\nhint: choose another name, or add --overwrite"):
        run(recipe, place / "out")
    assert [path.name for path in (place / "out").iterdir()] == ["old.txt"]
    assert list(place.iterdir()) == [place / "out"]


def test_an_empty_folder_is_taken(recipe: Path, place: Path) -> None:
    (place / "out").mkdir()
    run(recipe, place / "out")
    assert (place / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("swap", [True, False], ids=["exchange", "journal"])
def test_overwrite_leaves_nothing_of_the_old_folder(
    swap: bool, recipe: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swap:
        monkeypatch.setattr(room, "_renameat2", lambda *_: False)
    filled(place / "out")
    run(recipe, place / "out", overwrite=True)
    assert not (place / "out" / "old.txt").exists()
    assert [path.name for path in place.iterdir()] == ["out"]


def test_a_failed_replacement_keeps_the_old_folder(recipe: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(place / "out")
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    with pytest.raises(OutputError, match="the disk is full"):
        run(recipe, place / "out", overwrite=True)
    assert (place / "out" / "old.txt").read_text() == "old"
    assert [path.name for path in place.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_way_is_never_replaced(overwrite: bool, recipe: Path, place: Path) -> None:
    (place / "out").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not a folder"):
        run(recipe, place / "out", overwrite=overwrite)
    assert (place / "out").read_text() == "mine"


def test_a_parent_that_is_a_file(recipe: Path, place: Path) -> None:
    (place / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"file is not a folder"):
        run(recipe, place / "file" / "out")


def test_a_link_to_a_folder_keeps_being_one(recipe: Path, place: Path) -> None:
    filled(place / "real")
    (place / "link").symlink_to("real")
    run(recipe, place / "link", overwrite=True)
    assert (place / "link").is_symlink()
    assert (place / "real" / "adapter_model.safetensors").exists()
    assert not (place / "real" / "old.txt").exists()


def test_a_dangling_link_is_refused(recipe: Path, place: Path) -> None:
    (place / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists and is not a folder"):
        run(recipe, place / "link")


def test_something_that_appears_while_merging_is_not_replaced(recipe: Path, place: Path) -> None:
    with pytest.raises(OutputError, match="appeared while the merge was running"):
        run(recipe, place / "out", observe=lambda *_: filled(place / "out"))
    assert (place / "out" / "old.txt").read_text() == "old"
    assert [path.name for path in place.iterdir()] == ["out"]


def test_missing_parents_are_made(recipe: Path, place: Path) -> None:
    run(recipe, place / "a" / "b" / "out")
    assert (place / "a" / "b" / "out" / "rmkit.json").exists()


NESTED: dict[str, Callable[[Path], Path]] = {
    "inside an input": lambda root: root / "adapter1" / "out",
    "an input itself": lambda root: root / "adapter1",
    "around an input": lambda root: root,
    "around an input by another path": lambda root: root / "adapter1" / ".." / "adapter1",
    "through a link": lambda root: root / "link" / "out",
}


@pytest.mark.parametrize("case", NESTED)
def test_outputs_and_inputs_inside_each_other_are_refused(case: str, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("adapter1")
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=r"output folder and the input .* lie inside each other"):
        run(recipe, NESTED[case](tmp_path), overwrite=True)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_an_output_around_the_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    recipe = write_recipe(tmp_path / "recipes", write_adapters(tmp_path / "inputs", 2))
    with pytest.raises(OutputError, match="the output folder holds the recipe itself"):
        run(recipe, tmp_path / "recipes", overwrite=True)
    assert recipe.exists()


def test_the_message_names_the_input_that_is_in_the_way(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="adapter1") as caught:
        run(recipe, tmp_path / "adapter1" / "out")
    assert "adapter0" not in str(caught.value)


# --- modes, places ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_modes_follow_the_umask(weights: str, umask: int, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2), output={"weights": weights})
    run(recipe, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)


def test_without_out_the_recipe_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = write_adapters(tmp_path / "inputs", 2)
    recipe = write_recipe(tmp_path, adapters, output={"path": "results/here"})
    monkeypatch.chdir(tmp_path / "inputs")
    assert run(recipe, None).path == tmp_path / "results" / "here"  # type: ignore[arg-type]
    recipe = write_recipe(tmp_path, adapters)
    assert run(recipe, None).path == tmp_path / "inputs" / "recipe-merged"  # type: ignore[arg-type]
    recipe = write_recipe(tmp_path, adapters, name="vqa")
    assert run(recipe, None).path == tmp_path / "inputs" / "vqa-merged"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["has/slash", "..", "."])
def test_a_name_that_is_no_folder_name_does_not_lead_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = write_adapters(tmp_path / "inputs", 2)
    recipe = write_recipe(tmp_path, adapters, name=name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert run(recipe, None).path.parent == tmp_path / "work"  # type: ignore[arg-type]


# --- what the operating system refuses --------------------------------------------------------------------------------


def failing(code: int, after: int = 0) -> Callable[..., Any]:
    """A stand-in for a call of `os` that fails once it was called more than `after` times."""
    real, calls = os.pwrite, 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    return call


REFUSALS = {
    "full at once": ("posix_fallocate", errno.ENOSPC, 0, "the disk is full"),
    "full on the way": ("pwrite", errno.ENOSPC, 3, "the disk is full"),
    "quota": ("pwrite", errno.EDQUOT, 0, "the disk is full"),
    "disk fails at the end": ("fsync", errno.EIO, 0, "cannot be written: Input/output error"),
    "full at the end": ("fsync", errno.ENOSPC, 0, "the disk is full"),
    "no permission": ("mkdir", errno.EACCES, 0, "no permission to write"),
    "read-only": ("mkdir", errno.EROFS, 0, "no permission to write"),
    "no permission to rename": ("rename", errno.EACCES, 0, "no permission to write"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_of_the_operating_system(case: str, recipe: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, code, after, message = REFUSALS[case]
    monkeypatch.setattr(room, "_renameat2", lambda *_: False)
    monkeypatch.setattr(os, name, failing(code, after))
    with pytest.raises(OutputError, match=message) as caught:
        run(recipe, place / "out")
    assert caught.value.exit_code == 5
    monkeypatch.undo()
    assert list(place.iterdir()) == []


def test_too_little_space_is_said_before_anything_is_written(
    recipe: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustmerge_kit.disk.free_bytes", lambda target: 100)
    with pytest.raises(OutputError, match=r"needs \d+(\.\d+)? .?B, the disk has .* free"):
        run(recipe, place / "out", observe=lambda *_: pytest.fail("merging has begun"))
    assert list(place.iterdir()) == []


def test_a_really_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = sites(2, {"q_proj": (512, 512)})
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2, where=where, r=16), "cat")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=128k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        for checked in (True, False):
            if not checked:
                monkeypatch.setattr("robustmerge_kit.merge.check_space", lambda *_: None)
            with pytest.raises(OutputError, match="disk"):
                run(recipe, disk / "out")
            assert list(disk.iterdir()) == []
    finally:
        assert subprocess.run(["umount", disk]).returncode == 0, "a file was left open"


def test_a_folder_without_write_permission(recipe: Path, place: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("permissions do not stop root")
    place.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="no permission to write"):
            run(recipe, place / "out")
    finally:
        place.chmod(0o755)
    assert list(place.iterdir()) == []


# --- staging and repair -----------------------------------------------------------------------------------------------


def journalled(place: Path, *, stage: bool, old: bool) -> Path:
    """The state after a crash: the journal, and what stands beside the target."""
    target = place / "out"
    (place / ".out.rmkit-swap.json").write_text(json.dumps({"stage": ".out.rmkit-part-1", "old": ".out.rmkit-old-1"}))
    for present, name in ((stage, ".out.rmkit-part-1"), (old, ".out.rmkit-old-1")):
        if present:
            (place / name).mkdir()
            (place / name / "which").write_text(name.split("-")[1])
    return target


REPAIRS = {
    "between the renames": (True, True, False, "part"),
    "before the first rename": (True, False, True, "old"),
    "after the second rename": (False, True, True, "new"),
}


@pytest.mark.parametrize("case", REPAIRS)
def test_the_next_start_repairs_a_crash(case: str, place: Path) -> None:
    stage, old, exists, expected = REPAIRS[case]
    target = journalled(place, stage=stage, old=old)
    if exists:
        target.mkdir()
        (target / "which").write_text("old" if stage else "new")
    with pytest.raises(OutputError, match="exists already"), staged(target, False):
        pytest.fail("the repaired folder was not seen")
    assert (target / "which").read_text() == expected
    assert [path.name for path in place.iterdir() if path.name.endswith((".json", "old-1"))] == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": 1}', '{"stage": "../x", "old": "../../y"}'])
def test_a_broken_journal_is_dropped_and_never_leads_out_of_the_folder(text: str, place: Path) -> None:
    (place / ".out.rmkit-swap.json").write_text(text)
    outside = filled(place.parent / "x")
    with staged(place / "out", False) as stage:
        (stage / "file").write_text("new")
    assert [path.name for path in place.iterdir()] == ["out"]
    assert (outside / "old.txt").exists()


def test_names_with_glob_characters(place: Path) -> None:
    (place / ".o[u]*t.rmkit-part-dead").mkdir()
    (place / ".out.rmkit-part-other").mkdir()
    with staged(place / "o[u]*t", False) as stage:
        (stage / "file").write_text("new")
    assert sorted(path.name for path in place.iterdir()) == [".out.rmkit-part-other", "o[u]*t"]


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_too_long_is_refused_with_its_reason(length: int, recipe: Path, place: Path) -> None:
    with pytest.raises(OutputError, match=re.escape(os.strerror(errno.ENAMETOOLONG))):
        run(recipe, place / ("x" * length))


def test_an_exception_inside_removes_the_stage(place: Path) -> None:
    def fill() -> None:
        with staged(place / "out", False) as stage:
            (stage / "file").write_text("new")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fill()
    assert list(place.iterdir()) == []

"""`rmkit lock`, `rmkit lock --check` and `rmkit run --locked`: what is pinned, what is refused, that bytes come back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Call
from second_repository import commit, head, make_repository
from small_adapters import content, write_adapter, write_recipe

from robustmerge_kit import __version__, lock
from robustmerge_kit import git as rooms
from robustmerge_kit.errors import UsageError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """x.yaml builds on base.yaml and draws random numbers; its inputs lie in a/ and b/."""
    write_adapter(tmp_path / "a", 1)
    write_adapter(tmp_path / "b", 2)
    (tmp_path / "base.yaml").write_text(
        "merge_method: dare_ties\nadapters: [a, b]\nvars: {d: 0.5}\nparameters: {density: <d>}\n"
    )
    (tmp_path / "x.yaml").write_text("extends: base.yaml\nseed: 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rooms, "_OPEN", {})
    return tmp_path


def test_what_a_lock_holds(place: Path, call: Call) -> None:
    answer = call("lock x.yaml")
    assert (answer.code, answer.out) == (0, "x.lock: written; 6 files of 2 inputs and the recipe\n")
    found = json.loads((place / "x.lock").read_text())
    assert found["lock"] == 1
    assert [entry["reference"] for entry in found["recipe"]["files"]] == ["x.yaml", "base.yaml"]
    assert (found["recipe"]["variables"], found["recipe"]["seed"]) == ({"d": 0.5}, 3)
    assert [[file["name"] for file in entry["files"]] for entry in found["inputs"]] == [
        ["adapter_config.json", "adapter_model.safetensors"]
    ] * 2
    assert all(len(file["sha256"]) == 64 for entry in found["inputs"] for file in entry["files"])
    assert found["tools"]["rmkit"] == __version__
    assert set(found["tools"]) == {"rmkit", "torch", "numpy"}
    assert found["methods"] == {"dare_ties": f"robustmerge-kit {__version__}"}
    assert found["base"] is None
    assert call("lock x.yaml").out.startswith("x.lock: nothing has changed")
    assert str(place) not in (place / "x.lock").read_text()


def test_a_recipe_and_its_lock_give_the_same_bytes(place: Path, call: Call) -> None:
    assert call("lock x.yaml").code == 0
    assert call("run x.yaml one --locked -q -j 1").code == 0
    assert call("run x.yaml two --locked -q -j 2 --memory 1MB").code == 0
    one, two = content(place / "one"), content(place / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json", "rmkit_recipe.yaml"):
        assert one[name] == two[name]


def edit(path: str, text: str) -> Callable[[Path], Any]:
    return lambda place: (place / path).write_text(text)


def edit_lock(*way: Any, value: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        document = json.loads((place / "x.lock").read_text())
        inner = document
        for step in way[:-1]:
            inner = inner[step]
        inner[way[-1]] = value
        (place / "x.lock").write_text(json.dumps(document))

    return change


SAME_SIZE = "merge_method: dare_ties\nadapters: [b, a]\nvars: {d: 0.5}\nparameters: {density: <d>}\n"
DIFFERENT: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "the recipe": (edit("x.yaml", "extends: base.yaml\nseed: 3\n# more\n"), ["recipe.files[x.yaml].size is", ".sha256 is"]),
    "its parent, by order": (
        edit("base.yaml", SAME_SIZE),
        ["recipe.files[base.yaml].sha256 is", 'inputs[b].reference is "b", locked is "a"', 'inputs[a].reference is "a"'],
    ),
    "the seed": (
        edit("x.yaml", "extends: base.yaml\nseed: 4\n"),
        ["recipe.files[x.yaml].sha256 is", "recipe.seed is 4, locked is 3"],
    ),
    "the weights": (lambda place: write_adapter(place / "a", 7), ["inputs[a].files[adapter_model.safetensors].sha256 is"]),
    "the configuration": (
        lambda place: write_adapter(place / "b", 2, alpha=9.0),
        ["inputs[b].files[adapter_config.json].sha256 is"],
    ),
    "rmkit": (edit_lock("tools", "rmkit", value="0.0.1"), [f'tools.rmkit is "{__version__}", locked is "0.0.1"']),
    "torch": (edit_lock("tools", "torch", value="1.0"), ['tools.torch is "2', 'locked is "1.0"']),
    "a method": (edit_lock("methods", "dare_ties", value="mine 1"), ['methods.dare_ties is "robustmerge-kit']),
    "another tool": (edit_lock("tools", "scipy", value="1"), ['tools.scipy is locked as "1", and is not there']),
    "a further input": (
        lambda place: (write_adapter(place / "c"), (place / "base.yaml").write_text(SAME_SIZE.replace("[b, a]", "[a, b, c]"))),
        ["inputs[2] is c, and is not in the lock"],
    ),
    "an input less": (edit("base.yaml", SAME_SIZE.replace("[b, a]", "[a]")), ["inputs[1] is locked as b, and is not there"]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_differs_is_refused_and_told(name: str, place: Path, call: Call) -> None:
    change, parts = DIFFERENT[name]
    assert call("lock x.yaml").code == 0
    assert call("lock x.yaml --check").code == 0
    change(place)
    answer = call("run x.yaml out --locked")
    assert answer.code == 4
    assert [part for part in parts if part not in answer.err] == []
    assert answer.err.count("error: x.lock: ") >= len(parts) - 1
    assert answer.err.rstrip().endswith("go back to what was locked")
    assert not (place / "out").exists()
    checked = call("lock x.yaml --check")
    assert checked.code == 1
    assert [part for part in parts if part not in checked.out] == []
    assert call("run x.yaml out -q").code == 0


def test_settings_and_seeds_are_locked(place: Path, call: Call) -> None:
    assert call("lock x.yaml --set d=0.25").code == 0
    assert "recipe.variables.d is 0.5, locked is 0.25" in call("run x.yaml out --locked").err
    assert call("run x.yaml out --locked --set d=0.25 -q").code == 0
    (place / "x.yaml").write_text("extends: base.yaml\n")
    assert call("lock x.yaml").code == 0
    assert "recipe.seed is 9, locked is 0" in call("run x.yaml out2 --locked --random-seed 9").err


def test_json(place: Path, call: Call) -> None:
    document = json.loads(call("lock x.yaml --json").out)
    assert (document["path"], document["written"], document["differences"]) == ("x.lock", True, [])
    assert document["lock"] == json.loads((place / "x.lock").read_text())
    write_adapter(place / "a", 7)
    answer = call("lock x.yaml --json --check")
    (line,) = json.loads(answer.out)["differences"]
    assert (answer.code, line.startswith("inputs[a].files[adapter_model.safetensors].sha256 is")) == (1, True)
    assert document["lock"] == json.loads((place / "x.lock").read_text())


NO_LOCKS: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "x.lock: no such lock file\nhint: `rmkit lock RECIPE` writes it"),
    "no json": (b"{", "x.lock: is not a lock file: not JSON"),
    "bytes": (b"\xff\x00", "x.lock: is not a lock file: not JSON"),
    "deep": (b"[" * 100_000, "x.lock: is not a lock file"),
    "a list": (b"[]", "x.lock: is not a lock file"),
    "newer": (b'{"lock": 2}', "x.lock: is a lock of format 2, this version reads 1"),
    "no inputs": (b'{"lock": 1, "recipe": {"files": []}, "base": null}', "x.lock: is not a lock file"),
    "odd entry": (b'{"lock": 1, "recipe": {"files": [3]}, "inputs": [], "base": null}', "x.lock: is not a lock file"),
    "odd commit": (
        b'{"lock": 1, "recipe": {"files": []}, "inputs": [{"reference": "a", "revision": 3}], "base": null}',
        "x.lock: is not a lock file",
    ),
}


@pytest.mark.parametrize("name", NO_LOCKS)
def test_files_that_are_no_locks(name: str, place: Path, call: Call) -> None:
    text, message = NO_LOCKS[name]
    if text is not None:
        (place / "x.lock").write_bytes(text)
    for line in ("run x.yaml out --locked", "lock x.yaml --check"):
        answer = call(line)
        assert answer.code == 2
        assert message in answer.err


def test_a_lock_is_whole_or_not_there(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("lock x.yaml").code == 0
    before = (place / "x.lock").read_bytes()
    write_adapter(place / "a", 7)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock.os, "fsync", full)
    assert call("lock x.yaml").code == 5
    assert (place / "x.lock").read_bytes() == before
    assert not list(place.glob(".x.lock*"))


def test_where_locks_lie(place: Path) -> None:
    cases = {
        "x.yaml": "x.lock",
        "recipes/a.b.yaml": "recipes/a.b.lock",
        "org/name@v1:recipes/y.yaml": "y.lock",
        "datasets/org/name:y.yaml": "y.lock",
        "https://user:pw@host/recipes/z.yaml?token=1": "z.lock",
        "git+https://host/x.git@v1:recipes/w.yaml": "w.lock",
    }
    assert {reference: str(lock.lock_path(reference)) for reference in cases} == cases


def test_a_branch_that_moved_is_taken_where_it_was_locked(place: Path, call: Call) -> None:
    second = place / "second"
    write_adapter(second / "adapter", 1)
    make_repository(second)
    write_recipe(place, [f"git+file://{second}@main:adapter"], "linear")
    assert call("lock recipe.yaml").code == 0
    assert call("run recipe.yaml before --locked -q").code == 0
    old = head(second)
    write_adapter(second / "adapter", 9)
    commit(second)
    assert call("lock recipe.yaml --check").code == 0
    assert call("run recipe.yaml after --locked -q").code == 0
    assert call("run recipe.yaml unlocked -q").code == 0
    weights = "adapter_model.safetensors"
    assert content(place / "before")[weights] == content(place / "after")[weights] != content(place / "unlocked")[weights]
    assert json.loads((place / "after" / "rmkit.json").read_text())["inputs"][0]["revision"] == old


def test_a_base_is_locked_where_its_weights_count(place: Path, call: Call, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from small_adapters import sites
    from torch import ones

    base = place / "base"
    base.mkdir()
    save_file({f"{site}.weight": ones(*shape) for site, shape in sites().items()}, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "tiny"}')
    recipe = {"merge_method": "linear", "adapters": ["a"], "base_model": "./base", "output": {"kind": "model"}}
    (place / "m.yaml").write_text(json.dumps(recipe))
    answer = call("lock m.yaml")
    assert answer.code == 0, answer.err
    locked = json.loads((place / "m.lock").read_text())
    assert [file["name"] for file in locked["base"]["files"]] == ["config.json", "model.safetensors"]
    assert call("run m.yaml out --locked -q").code == 0
    (base / "config.json").write_text('{"model_type": "tinny"}')
    assert "base.files[config.json].size is" in call("run m.yaml out2 --locked").err


def test_a_lock_made_by_hand_is_refused_by_its_place() -> None:
    with pytest.raises(UsageError):
        lock.read_lock(Path("/"))

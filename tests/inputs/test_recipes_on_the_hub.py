"""Recipes on the Hub, against a stub on 127.0.0.1: each answer comes from a fresh process that knows only this Hub."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stub import MAIN, OLD, Hub, serving
from local_server import hub_environment
from small_adapters import write_adapter

ROOT = Path(__file__).parents[2]

CHILD = """
import json, sys, warnings
warnings.simplefilter("error")
from robustmerge_kit.errors import RmkitError
from robustmerge_kit.recipe import load_recipe
commits = json.loads(sys.argv[1])
for reference in sys.argv[2:]:
    try:
        recipe = load_recipe(reference, {}, commits)
        files = [[file.reference, file.revision] for file in recipe.origin.files]
        answer = dict(adapters=[entry.adapter for entry in recipe.adapters], files=files, seed=recipe.seed, title=recipe.title)
    except RmkitError as error:
        answer = dict(error=str(error), code=error.exit_code)
    print(json.dumps(answer))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = write_adapter(tmp_path / "weights", 1)
    adapter = {path.name: path.read_bytes() for path in folder.iterdir()}

    def inside(name: str) -> dict[str, bytes]:
        return {f"{name}/{file}": content for file, content in adapter.items()}

    mine = {
        "recipes/x.yaml": b"extends: base.yaml\nseed: 3\n",
        "recipes/base.yaml": b"merge_method: linear\nadapters: [../adapters/a, org/other, 'org/other@v1:sub']\n",
        "recipes/clash.yaml": b"merge_method: linear\nadapters: [org/other]\n",
        "recipes/far.yaml": b"extends: org/other@v1:base.yaml\n",
        "recipes/out.yaml": b"merge_method: linear\nadapters: [../../a]\n",
        "recipes/large.yaml": b"#" * 1_000_001,
        "recipes/local.yaml": b"extends: /etc/passwd\n",
        "top.yaml": b"merge_method: linear\nadapters: [adapters/a]\n",
        **inside("adapters/a"),
        **inside("recipes/org/other"),
        **{f"unused/{n}.bin": b"x" for n in range(3)},
    }
    other = {**adapter, **inside("sub"), "base.yaml": b"merge_method: linear\nadapters: [sub]\n"}
    repositories = {"org/mine": mine, "org/other": other, "datasets/org/recipes": mine, "org/gated": mine}
    with serving(Hub(repositories, gated={"org/gated"})) as running:
        yield running


def load(hub: Hub, place: Path, *references: str, commits: dict[str, str] | None = None, **more: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(commits or {}), *references],
        env=hub_environment(hub.url, place / "hub", **more),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def rmkit(hub: Hub, place: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "robustmerge_kit", *words],
        env=hub_environment(hub.url, place / "hub", **more),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_references_mean(hub: Hub, tmp_path: Path) -> None:
    here = f"hf://org/mine@{MAIN}:"
    cases: dict[str, dict[str, Any]] = {
        "org/mine:recipes/x.yaml": {
            "adapters": [f"{here}adapters/a", f"{here}recipes/org/other", "org/other@v1:sub"],
            "files": [["org/mine:recipes/x.yaml", MAIN], [f"{here}recipes/base.yaml", MAIN]],
            "seed": 3,
            "title": "x",
        },
        "hf://org/mine@v1:recipes/x.yaml": {
            "adapters": [f"hf://org/mine@{OLD}:adapters/a", f"hf://org/mine@{OLD}:recipes/org/other", "org/other@v1:sub"],
            "files": [["hf://org/mine@v1:recipes/x.yaml", OLD], [f"hf://org/mine@{OLD}:recipes/base.yaml", OLD]],
        },
        "org/mine:top.yaml": {"adapters": [f"{here}adapters/a"]},
        "datasets/org/recipes:top.yaml": {"adapters": [f"hf://datasets/org/recipes@{MAIN}:adapters/a"]},
        "org/mine:recipes/far.yaml": {
            "adapters": [f"hf://org/other@{OLD}:sub"],
            "files": [["org/mine:recipes/far.yaml", MAIN], ["org/other@v1:base.yaml", OLD]],
        },
        "org/mine:recipes/out.yaml": {"code": 2},
        "org/mine:recipes/local.yaml": {"code": 2},
        "org/mine:recipes/none.yaml": {"code": 2},
        "org/mine:recipes/large.yaml": {"code": 2},
        "org/mine@nope:recipes/x.yaml": {"code": 2},
        "org/none:x.yaml": {"code": 2},
        "org/gated:top.yaml": {"code": 2},
        "org/mine@main": {"code": 2},
        "org/mine": {"code": 2},
    }
    messages = {
        "org/mine:recipes/out.yaml": "org/mine:recipes/out.yaml:2:12: ../../a: leads outside of its repository",
        "org/mine:recipes/local.yaml": "may not name files of this machine",
        "org/mine:recipes/none.yaml": "404: a file of org/mine is missing",
        "org/mine:recipes/large.yaml": "is larger than 1000000 bytes",
        "org/mine@nope:recipes/x.yaml": "404: org/mine has no revision 'nope'",
        "org/none:x.yaml": "no repository org/none, or it is private",
        "org/gated:top.yaml": "org/gated is gated",
        "org/mine@main": "names no file\nhint: add it: org/mine@main:recipes/x.yaml",
        "org/mine": "no such file",
    }
    answers = load(hub, tmp_path, *cases)
    for (reference, expected), answer in zip(cases.items(), answers, strict=True):
        assert {key: answer.get(key) for key in expected} == expected, (reference, answer)
        assert messages.get(reference, "") in answer.get("error", ""), (reference, answer)
    assert not any("unused" in path or "safetensors" in path for path in hub.fetched())


def test_a_file_here_wins_over_the_hub(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "mine:top.yaml").write_text("merge_method: linear\nadapters: [x]\nseed: 7\n")
    here, there = load(hub, tmp_path, "org/mine:top.yaml", "hf://org/mine:top.yaml")
    assert here["adapters"] == ["x"]
    assert there["adapters"] == [f"hf://org/mine@{MAIN}:adapters/a"]


def test_offline_takes_what_is_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    (first,) = load(hub, tmp_path, "org/mine:top.yaml")
    assert rmkit(hub, tmp_path, "run", "org/mine:top.yaml", "one", "-q").returncode == 0
    before = len(hub.requests)
    offline, absent = load(hub, tmp_path, "org/mine:top.yaml", "org/other:base.yaml", HF_HUB_OFFLINE="1")
    assert offline == first
    assert "is not in the local cache" in absent["error"]
    done = rmkit(hub, tmp_path, "run", "org/mine:top.yaml", "two", "-q", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) == before


def test_commits_take_the_place_of_revisions(hub: Hub, tmp_path: Path) -> None:
    (pinned,) = load(hub, tmp_path, "org/mine:top.yaml", commits={"org/mine:top.yaml": OLD})
    assert pinned["adapters"] == [f"hf://org/mine@{OLD}:adapters/a"]


def test_run_lock_and_run_locked(hub: Hub, tmp_path: Path) -> None:
    """The lock of a recipe from elsewhere lies in the working folder, and holds its commits."""
    reference = "org/mine:recipes/x.yaml"
    assert rmkit(hub, tmp_path, "run", reference, "--locked").returncode == 2
    done = rmkit(hub, tmp_path, "lock", reference, "--json")
    assert done.returncode == 0, done.stderr
    lock = json.loads((tmp_path / "x.lock").read_text())
    assert json.loads(done.stdout)["lock"] == lock
    assert [entry["revision"] for entry in lock["recipe"]["files"]] == [MAIN, MAIN]
    assert [entry["revision"] for entry in lock["inputs"]] == [MAIN, MAIN, OLD]
    done = rmkit(hub, tmp_path, "run", reference, "out", "--locked", "--json", "-q")
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert [entry["revision"] for entry in receipt["inputs"]] == [MAIN, MAIN, OLD]
    hub.repositories["org/mine"]["recipes/base.yaml"] += b"# changed\n"
    done = rmkit(hub, tmp_path, "run", reference, "again", "--locked", "-q", HF_HOME=str(tmp_path / "fresh"))
    assert done.returncode == 4
    assert f"x.lock: recipe.files[hf://org/mine@{MAIN}:recipes/base.yaml].size is 88, locked is 78" in done.stderr
    assert ".sha256 is" in done.stderr
    assert not (tmp_path / "again").exists()

"""A Hub that answers with hostile names and commits: nothing is written outside of the cache."""

from pathlib import Path

import hub_stub
import pytest
from hub_stub import Hub, resolve_in_child, serving
from small_adapters import write_adapter

NAMES = ["../../evil/adapter_config.json", "/etc/adapter_config.json", "a//adapter_config.json", "./adapter_config.json"]


def test_names_that_lead_outside_are_no_files(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hostile = dict.fromkeys((*NAMES, "\x1b[31m.safetensors"), files["adapter_config.json"])
    hostile |= {name.replace("_config.json", "_model.safetensors"): b"x" for name in NAMES}
    with serving(Hub({"org/evil": hostile, "org/mixed": hostile | files})) as hub:
        refused, taken = resolve_in_child(hub.url, tmp_path / "home", ["org/evil", "org/mixed"])
    assert "404" in refused["error"]
    assert "error" not in taken
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(folder)]
    assert all(path.is_relative_to(tmp_path / "home") for path in written)


@pytest.mark.parametrize("commit", ["../../../../evil", "/etc", "x", "A" * 40])
def test_a_commit_is_not_a_path(commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_stub, "MAIN", commit)
    folder = write_adapter(tmp_path / "adapter")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serving(Hub({"org/name": files})) as hub:
        (answer,) = resolve_in_child(hub.url, tmp_path / "home", ["org/name"])
    assert "the Hub names no commit for it" in answer["error"]

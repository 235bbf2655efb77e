"""References as users write them: which are local, what they mean, which are refused."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from adapter_folders import folder, pair

from robustmerge_kit.errors import InputError, Several
from robustmerge_kit.sources import FileDigest, digest, parse_hub_reference, resolve, resolve_all


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in (
        "plain",
        "a+b",
        "a@v1",
        "two words",
        "für+日本@1:x",
        "C:",
        "run/checkpoint-1",
        "run/deep/er",
        "org/name",
        "a:b",
    ):
        folder(tmp_path / name, pair("q"))
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("plain", "plain"),
        ("./plain", "plain"),
        ("plain/", "plain"),
        ("plain/adapter_config.json", "plain"),
        ("a+b", "a+b"),
        ("a@v1", "a@v1"),
        ("two words", "two words"),
        ("für+日本@1:x", "für+日本@1:x"),
        ("a:b", "a:b"),
        ("C:", "C:"),
        ("org/name", "org/name"),
        ("run:checkpoint-1", "run/checkpoint-1"),
        ("run:deep/er", "run/deep/er"),
        ("run:deep\\er", "run/deep/er"),
        ("run:./deep/er/", "run/deep/er"),
        (".:a:b", "a:b"),
        ("plain:", "plain"),
    ],
)
def test_local_references(place: Path, reference: str, found: str) -> None:
    source = resolve(reference, place)
    assert source.folder == place / found
    assert source.reference == reference
    assert source.file is source.repository is source.revision is None


@pytest.mark.parametrize("reference", ["plain/adapter_model.safetensors", "plain:adapter_model.safetensors"])
def test_a_weights_file_instead_of_its_folder(place: Path, reference: str) -> None:
    source = resolve(reference, place)
    assert (source.folder, source.file) == (place / "plain", place / "plain/adapter_model.safetensors")


def test_absolute_home_and_linked_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    (place / "link").symlink_to(place / "plain")
    assert resolve(str(place / "plain"), Path("/")).folder == place / "plain"
    assert resolve("~/plain", Path("/")).folder == place / "plain"
    assert resolve("~/run:checkpoint-1", Path("/")).folder == place / "run/checkpoint-1"
    assert resolve("link", place).folder == place / "link"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("./absent", "no such folder"),
        ("/absent/one", "no such folder"),
        ("org/absent", "no such folder"),
        ("absent", "no such folder"),
        ("C:\\x\\y", "no such folder"),
        ("run:absent", "no 'absent' in the folder run; adapters there: checkpoint-1"),
        ("run:../plain", "leads outside"),
        ("run:deep/../../plain", "leads outside"),
        ("run:/etc", "leads outside"),
        ("run:C:/x", "leads outside"),
        ("a/b/c/d", "not a Hub reference"),
        ("x" * 5000, "no such folder"),
        ("a\0b", "needs a folder"),
        ("", "needs a folder"),
    ],
)
def test_refused(place: Path, reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(reference, place)


def test_a_pipe_is_no_input(place: Path) -> None:
    os.mkfifo(place / "pipe")
    with pytest.raises(InputError, match="neither a folder nor a file"):
        resolve("pipe", place)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("org/name", ("org/name", None, "")),
        ("org/name@main", ("org/name", "main", "")),
        ("org/name@refs/pr/4:sub/folder", ("org/name", "refs/pr/4", "sub/folder")),
        ("o-r.g/n_a.m-e:a b", ("o-r.g/n_a.m-e", None, "a b")),
    ],
)
def test_hub_references(reference: str, parts: tuple[str, str | None, str]) -> None:
    found = parse_hub_reference(reference)
    assert (found.repository, found.revision, found.subfolder) == parts


def test_several_at_once(place: Path) -> None:
    sources = resolve_all(["plain", "run:checkpoint-1", "plain"], place)
    assert [source.folder.name for source in sources] == ["plain", "checkpoint-1", "plain"]
    with pytest.raises(Several, match=r"(?s)./one.*./two"):
        resolve_all(["./one", "plain", "./two"], place)
    started = time.perf_counter()
    for _ in range(50):
        resolve_all(["plain", "run:checkpoint-1"], place)
    assert (time.perf_counter() - started) / 50 < 0.02


def test_digests(place: Path) -> None:
    paths = sorted((place / "plain").iterdir())
    found = digest([*paths, paths[0]])
    assert found == {p: FileDigest(p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths}
    assert digest([]) == {}
    with pytest.raises(InputError, match="cannot be read"):
        digest([place / "absent"])

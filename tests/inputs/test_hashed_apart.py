"""Large files are hashed by a process of its own, which is trusted only where it read the very file that was meant."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_adapters import run, write_adapters, write_recipe

from robustmerge_kit import apart, digests
from robustmerge_kit.apart import HashedApart


@pytest.fixture
def hasher(monkeypatch: pytest.MonkeyPatch) -> Iterator[HashedApart]:
    monkeypatch.setattr(apart, "WORTH", 0)
    made = HashedApart()
    yield made
    made.close()


def ask(hasher: HashedApart, path: Path) -> str | None:
    with path.open("rb") as file:
        return hasher.ask(path, file)


def child_of(hasher: HashedApart) -> subprocess.Popen[bytes]:
    assert hasher._child is not None
    return hasher._child


def test_it_gives_the_sha256(tmp_path: Path, hasher: HashedApart) -> None:
    for i, size in enumerate((0, 1, apart.PIECE, 3 * apart.PIECE + 7)):
        path = tmp_path / f"file {i} ü"
        path.write_bytes(os.urandom(size))
        assert ask(hasher, path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_small_files_start_no_process(tmp_path: Path) -> None:
    made = HashedApart()
    (tmp_path / "small").write_bytes(b"x")
    assert ask(made, tmp_path / "small") is None
    assert made._child is None
    made.close()


def test_another_file_under_the_same_path_is_no_answer(tmp_path: Path, hasher: HashedApart) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with path.open("rb") as file:
        (tmp_path / "y").write_bytes(b"after!")
        (tmp_path / "y").replace(path)
        assert hasher.ask(path, file) is None
        path.unlink()
        assert hasher.ask(path, file) is None
    assert ask(hasher, Path(__file__)) is not None


def test_a_path_of_two_lines_is_no_answer(tmp_path: Path, hasher: HashedApart) -> None:
    path = tmp_path / "a\nb"
    path.write_bytes(b"x")
    assert ask(hasher, path) is None


def test_when_the_process_dies_the_files_are_hashed_here(tmp_path: Path, hasher: HashedApart) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    assert ask(hasher, path)
    child_of(hasher).kill()
    child_of(hasher).wait()
    assert ask(hasher, path) is None
    assert digests.sha256_of(path, hasher.ask) == (7, hashlib.sha256(b"content").hexdigest())


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 40)
    return path


def test_closing_ends_it_at_once(tmp_path: Path, hasher: HashedApart) -> None:
    path, raised = sparse(tmp_path / "large"), list[BaseException]()

    def wait() -> None:
        try:
            ask(hasher, path)
        except InterruptedError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while hasher._child is None:
        time.sleep(0.01)
    time.sleep(0.2)
    hasher.close()
    thread.join(10)
    assert not thread.is_alive()
    assert raised
    assert child_of(hasher).returncode is not None


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large")
    code = f"""
import threading, time
from pathlib import Path
from robustmerge_kit.apart import HashedApart
hasher, path = HashedApart(), Path({str(path)!r})
threading.Thread(target=lambda: hasher.ask(path, path.open("rb")), daemon=True).start()
while hasher._child is None:
    time.sleep(0.01)
print(hasher._child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the process goes on hashing for nobody")


def test_a_receipt_holds_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "WORTH", 0)
    monkeypatch.setattr(digests, "_hash", lambda file: hashlib.sha256(b"not asked").hexdigest())
    adapters = write_adapters(tmp_path, 2)
    time.sleep(2 * digests.SETTLED)
    run(write_recipe(tmp_path, adapters), tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    for adapter, entry in zip(adapters, receipt["inputs"], strict=True):
        for file in entry["files"]:
            assert file["sha256"] == hashlib.sha256((adapter / file["name"]).read_bytes()).hexdigest()

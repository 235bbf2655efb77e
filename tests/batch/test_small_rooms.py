"""Claims, hashes, faults, control groups: what a batch relies on."""

import errno
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from robustmerge_kit import digests
from robustmerge_kit.batch import local
from robustmerge_kit.batch.claim import Claimed, claim, claim_file
from robustmerge_kit.batch.faults import is_transient
from robustmerge_kit.batch.local import Limits, LocalEngine, check_device, in_flight, pick_devices, with_overhead
from robustmerge_kit.batch.machine import _of_group, available_memory
from robustmerge_kit.batch.tasks import Job, Task
from robustmerge_kit.batch.worker import Held, Ready
from robustmerge_kit.errors import InputError, OutputError, RecipeError, Several, UsageError

# --- claims -----------------------------------------------------------------------------------------------------------------


def test_one_claim_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with claim(target):
        assert claim_file(target).exists()
        with pytest.raises(Claimed, match="another batch is writing it"), claim(target):
            pass
        assert claim_file(target).exists(), "a refused claim leaves the holder's alone"
    assert list(target.parent.iterdir()) == []
    with claim(target):
        pass


def hold(target: Path, held: Event) -> None:
    with claim(target):
        held.set()
        time.sleep(60)


def test_a_claim_dies_with_its_holder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "out", held), daemon=True)
    holder.start()
    assert held.wait(30)
    with pytest.raises(Claimed), claim(tmp_path / "out"):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert claim_file(tmp_path / "out").exists()
    with claim(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_no_way_out_of_the_folder(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    claim_file(tmp_path / "out").symlink_to(victim)
    with pytest.raises(OutputError), claim(tmp_path / "out"):
        pass
    assert not victim.exists()


# --- hashes of files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read to the end."""
    read: list[str] = []
    real = digests._hash  # pyright: ignore[reportPrivateUsage]

    def note(file: Any) -> str:
        read.append(Path(file.name).name)
        return real(file)

    monkeypatch.setattr(digests, "_hash", note)
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "_shared", None)
    return read


def old(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    time.sleep(0.15)
    return path


def test_a_file_is_read_once_while_it_stays_the_same(counted: list[str], tmp_path: Path) -> None:
    path = old(tmp_path / "x", b"one")
    first = digests.sha256_of(path)
    assert digests.sha256_of(path) == first
    assert counted == ["x"]
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    time.sleep(0.15)
    assert digests.sha256_of(path) != first, "same size, inode and modification time"
    assert counted == ["x", "x"]


def test_a_file_that_was_just_changed_is_not_remembered(counted: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    digests.sha256_of(path)
    path.write_bytes(b"two")
    assert digests.sha256_of(path)[1].startswith("3fc4")
    assert counted == ["x", "x"]


def test_processes_share_what_they_hash(counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old(tmp_path / "x", b"one")
    digests.share_digests(tmp_path / "shared")
    first = digests.sha256_of(path)
    monkeypatch.setattr(digests, "_known", {})  # as in another process
    assert digests.sha256_of(path) == first
    assert counted == ["x"]
    (entry,) = (tmp_path / "shared").iterdir()
    entry.write_text("half an ent")
    monkeypatch.setattr(digests, "_known", {})
    assert digests.sha256_of(path) == first
    assert counted == ["x", "x"]
    digests.share_digests(None)


# --- faults -----------------------------------------------------------------------------------------------------------------


class Response:
    def __init__(self, status: int) -> None:
        self.status_code = status


class AnsweredError(Exception):
    def __init__(self, status: int) -> None:
        self.response = Response(status)
        super().__init__(str(status))


TransportError = type("ConnectError", (Exception,), {"__module__": "httpx._exceptions"})

FAULTS = {
    "a recipe": (RecipeError("wrong"), None, False),
    "a missing file": (InputError("gone"), FileNotFoundError(errno.ENOENT, "gone"), False),
    "a disk that fails": (InputError("cannot be read"), OSError(errno.EIO, "I/O"), True),
    "a stale handle": (InputError("cannot be read"), OSError(errno.ESTALE, "stale"), True),
    "a time-out": (OutputError("cannot be written"), TimeoutError(), True),
    "a full disk": (OutputError("full"), OSError(errno.ENOSPC, "full"), False),
    "a quota": (OutputError("full"), OSError(errno.EDQUOT, "quota"), False),
    "no permission": (OutputError("no"), PermissionError(errno.EACCES, "no"), False),
    "the Hub is broken": (InputError("500"), AnsweredError(500), True),
    "the Hub is busy": (InputError("429"), AnsweredError(429), True),
    "the Hub refuses": (InputError("403"), AnsweredError(403), False),
    "the Hub has no such thing": (InputError("404"), AnsweredError(404), False),
    "no connection": (InputError("cannot be asked"), TransportError("refused"), True),
    "a bug": (ValueError("bug"), None, False),
    "a bug below": (InputError("odd"), KeyError("x"), False),
}


@pytest.mark.parametrize("case", FAULTS)
def test_which_faults_may_pass(case: str) -> None:
    error, cause, expected = FAULTS[case]
    error.__cause__ = cause
    assert is_transient(error) is expected


def test_several_faults_pass_only_together() -> None:
    passing, lasting = InputError("a"), InputError("b")
    passing.__cause__ = OSError(errno.EIO, "I/O")
    assert is_transient(Several([passing, passing]))
    assert not is_transient(Several([passing, lasting]))


def test_the_innermost_known_cause_decides() -> None:
    outer, middle = InputError("a file is missing"), AnsweredError(404)
    middle.__cause__ = TransportError("no network")
    outer.__cause__ = middle
    assert is_transient(outer)


# --- the machine ------------------------------------------------------------------------------------------------------------


def test_memory_of_a_control_group(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    for group, limit, used in (("job", "1000", "700"), ("job/step", "max", "600")):
        folder = tmp_path / "cgroup" / group
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(used)
        (folder / "memory.stat").write_text("anon 100\ninactive_file 200\nactive_file 50\n")
    assert _of_group(tmp_path / "cgroup", own) == 1000 - 700 + 250
    assert _of_group(tmp_path / "nowhere", own) is None
    assert _of_group(tmp_path / "cgroup", tmp_path / "none") is None
    assert available_memory() > 0


DEVICES = {
    ("cpu", 4): ("cpu",),
    ("auto", 0): ("cpu",),
    ("auto", 2): ("cuda:0", "cuda:1"),
    ("cuda", 3): ("cuda:0", "cuda:1", "cuda:2"),
    ("cuda:1", 2): ("cuda:1",),
    ("cuda:0,cuda:2", 3): ("cuda:0", "cuda:2"),
    ("cuda", 0): "this machine has 0 CUDA devices",
    ("cuda:0,cuda:5", 2): "cuda:5: this machine has 2 CUDA devices",
}


@pytest.mark.parametrize("case", DEVICES)
def test_devices(case: tuple[str, int]) -> None:
    expected = DEVICES[case]
    check_device(case[0])
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            pick_devices(*case)
    else:
        assert pick_devices(*case) == expected


class Cradle:
    """A nursery whose workers are there at once, and do nothing."""

    pid = 0

    def __init__(self, log: Path) -> None:
        self.workers: list[Connection] = []

    def start(self, log: Path) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        theirs.send(Ready(os.getpid(), Held(0, 0), (1 << 34, 1 << 34, 1 << 34)))
        self.workers.append(theirs)
        return ours


@pytest.mark.parametrize(
    ("device", "workers", "devices"),
    [
        ("cuda", None, "cuda:0 cuda:1 cuda:2"),
        ("cuda:0,cuda:2", None, "cuda:0 cuda:2"),
        ("cuda", 1, "cuda:0"),
        ("cpu", None, "cpu"),
    ],
)
def test_a_merge_alone_is_helped_on_the_other_gpus(
    device: str, workers: int | None, devices: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "Nursery", Cradle)
    engine = LocalEngine(Limits(8 << 30, workers, device, cores=4), 1, tmp_path)
    engine.wait(1)
    assert engine.offer(Task(0, "merge", Job("job", "recipe")), 1000)
    for number in range(1, 9):
        engine.offer(Task(number, "help", Job("job", "recipe")), 1000)
        engine.wait(0.05)
    cradle = engine._nursery
    assert isinstance(cradle, Cradle)
    assert [worker.recv().share.device for worker in cradle.workers if worker.poll()] == devices.split()


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:0,cpu", "cuda:0,", "mps"])
def test_no_such_device(wanted: str) -> None:
    with pytest.raises(UsageError, match="no such device"):
        check_device(wanted)


def test_a_share_holds_what_it_is_made_for() -> None:
    for needs in (0, 1, 10**6, 10**9):
        assert in_flight(with_overhead(needs)) >= needs - 1

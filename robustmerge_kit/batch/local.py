"""Tasks on one machine: a few worker processes, each with torch imported once, within a budget of memory and of GPUs."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import re
import signal
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from ..errors import OutputError, RmkitError, UsageError
from ..memory import anonymous, anonymous_of
from .nursery import Nursery
from .tasks import Happening, Lost, Share, Task
from .worker import STOP, Held, Idle, Ready

IDLE_BYTES = 200 << 20
"""What a process is expected to hold that has imported everything and does nothing yet."""
FORKED_BYTES = 40 << 20
"""What a worker is expected to hold that shares those imports, until it says how much it is."""
_EXPECTED = Held(0, FORKED_BYTES)
LEAST_SHARE = 48 << 20
USUAL_SHARE = 704 << 20
"""A merge gains nothing from more, unless one of its steps needs more."""
_OVERHEAD = 1.25
_APART = 16 << 20
"""Bytes of a share and its part beside the tensors that are counted; see `in_flight`."""
GPU_CONTEXT = 600 << 20
"""Device memory that a process takes for itself."""
GRACE = 5.0
"""Seconds between asking a worker to stop and killing it."""
_FALSE_STARTS = 3
_SAMPLE_EVERY = 0.05


@dataclass(frozen=True)
class Limits:
    """What the machine is to give. workers: processes, None: as many as the rest allows. memory: bytes of all of them together.

    device: auto, cpu, cuda (all GPUs) or cuda:0,cuda:2. gpu_memory: bytes on each GPU, None: 80 % of it.
    """

    memory: int
    workers: int | None = None
    device: str = "auto"
    gpu_memory: int | None = None
    cores: int = 1


@dataclass
class _Seat:
    """One worker process; `pid` is 0 until it is ready. held: memory when idle. given: bytes its task may use on top."""

    number: int
    connection: Connection
    log: Path
    pid: int = 0
    held: Held = _EXPECTED
    task: Task | None = None
    given: int = 0


class LocalEngine:
    """Workers of one machine, forked by one process that imports what they need; another one follows when one dies."""

    split_above = 256_000_000
    """That much takes one core two seconds; a helper needs some hundredths of one to plan the merge once more."""

    def __init__(self, limits: Limits, tasks: int, logs: Path) -> None:
        """tasks: how many there will be at most. logs: folder for what workers say outside of tasks."""
        check_device(limits.device)
        self.limits = limits
        self.peak = 0
        self.devices: tuple[str, ...] = ()
        self._logs = logs
        self._nursery_log = logs / "workers.log"
        self._gpus: tuple[int, ...] = ()
        self._false_starts = 0
        self._own = anonymous()
        self._nursery_bytes = IDLE_BYTES
        self._sampled = 0.0
        fitting = (limits.memory - self._own - IDLE_BYTES) // (FORKED_BYTES + LEAST_SHARE)
        self._most = max(1, min(limits.workers or limits.cores, fitting))
        self._merging = min(self._most, max(1, tasks))
        self._seats: list[_Seat] = []
        try:
            self._nursery = Nursery(self._nursery_log)
        except OSError as error:
            raise OutputError.from_os(error, logs) from error
        self._seats = [self._start(number) for number in range(self._merging)]

    # --- what the batch asks ----------------------------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """Bytes that all processes together may take."""
        return self.limits.memory

    @property
    def largest(self) -> int:
        """The largest step, in bytes, that a merge which runs alone could hold."""
        return in_flight(self.limits.memory - self._fixed())

    def offer(self, task: Task, needs: int) -> bool:
        """Give a task to a free worker, with a share that fits; False: there is none now, ask again."""
        merging = task.kind != "check"
        free = [s for s in self._seats if s.pid and s.task is None and (not merging or s.number < self._merging)]
        if not free:
            if task.kind == "help":
                self._take_another_gpu()
            return False
        given = 0
        if merging:
            left = self.limits.memory - self._fixed()
            if with_overhead(needs) + task.apart > left:
                if task.kind == "help":
                    return False
                task = replace(task, shared=False)
            given = max(min(left // len(self._seats), USUAL_SHARE + task.apart), with_overhead(needs) + task.apart)
            if given > left - sum(seat.given for seat in self._seats) and any(seat.given for seat in self._seats):
                return False
        seat = free[0]
        seat.task, seat.given = task, given
        with contextlib.suppress(OSError):  # it has just died; `wait` tells
            seat.connection.send(replace(task, share=self._share(seat.number, given - task.apart)))
        return True

    def wait(self, seconds: float) -> list[Happening]:
        """What has happened, at the latest after some seconds.

        Raises: UsageError when the first worker finds that device or memory are not there, RmkitError when none can start.
        """
        found: list[Happening] = []
        seats = {seat.connection: seat for seat in self._seats}
        for ready in multiprocessing.connection.wait(list(seats), seconds):
            assert isinstance(ready, Connection)
            seat = seats[ready]
            try:
                message = ready.recv()
            except (EOFError, OSError):
                found += self._bury(seat)
                continue
            if isinstance(message, Ready):
                seat.pid, seat.held = message.pid, message.held
                self._nursery_bytes = anonymous_of(self._nursery.pid)
                self._false_starts = 0
                self._settle(message)
            elif isinstance(message, Idle):
                seat.task, seat.given, seat.held = None, 0, message.held
                found.append(message.finished)
            else:
                found.append(message)
        self._sample()
        return found

    def stop(self) -> None:
        """End all workers: they clean up, or are killed after some seconds. What they did is not reported any more."""
        for seat in self._seats:
            _signal(seat.pid, STOP)
        open_ = {seat.connection: seat for seat in self._seats}
        deadline = time.monotonic() + GRACE
        while open_ and (left := deadline - time.monotonic()) > 0:
            for ready in multiprocessing.connection.wait(list(open_), left):
                assert isinstance(ready, Connection)
                try:
                    ready.recv()
                except (EOFError, OSError):
                    del open_[ready]
        for seat in open_.values():
            _signal(seat.pid, signal.SIGKILL)
        for seat in self._seats:
            seat.connection.close()
        self._seats = []

    def close(self) -> None:
        """End the workers and the process that forks them."""
        self.stop()
        self._nursery.close()

    # --- workers ----------------------------------------------------------------------------------------------------------

    def _fixed(self) -> int:
        """Bytes that are held whatever is merged."""
        return self._own + self._nursery_bytes + sum(seat.held.own for seat in self._seats)

    def _sample(self) -> None:
        """Take note of the anonymous memory of all processes together, now and then."""
        if time.monotonic() - self._sampled > _SAMPLE_EVERY:
            self._sampled = time.monotonic()
            # What a worker holds beyond its idle state is its own; telling apart what is shared takes too long to do it always.
            grown = sum(max(0, anonymous(seat.pid) - seat.held.whole) for seat in self._seats if seat.pid)
            self.peak = max(self.peak, self._fixed() + grown)

    def _start(self, number: int) -> _Seat:
        log = self._logs / f"worker-{number}.log"
        return _Seat(number, self._nursery.start(log), log)

    def _take_another_gpu(self) -> None:
        """Start a worker for a GPU that has none; cores need no more, since the workers that are there share all of them."""
        starting = any(not seat.pid for seat in self._seats)
        if self.devices != ("cpu",) and len(self._seats) < min(len(self.devices), self._most) and not starting:
            self._seats.append(self._start(len(self._seats)))
            self._merging = len(self._seats)

    def _bury(self, seat: _Seat) -> list[Happening]:
        """A worker has died: tell of its task, and put another in its place."""
        seat.connection.close()
        why = _cause_of_death(self._nursery.bury(seat.pid) if seat.pid else None)
        if not self._nursery.alive:
            self._nursery.close()
            self._nursery = Nursery(self._nursery_log)
        if not seat.pid:
            self._false_starts += 1
            if self._false_starts > _FALSE_STARTS * len(self._seats):
                said = [line for log in (self._nursery_log, seat.log) for line in _lines(log)]
                raise RmkitError(f"workers cannot start: {said[-1][:300] if said else why}", where=str(self._logs))
        self._seats[self._seats.index(seat)] = self._start(seat.number)
        return [] if seat.task is None else [Lost(seat.task.number, why)]

    def _settle(self, first: Ready) -> None:
        """Fix what only a worker knows: which devices there are, and what is left of the memory."""
        alone = self._own + self._nursery_bytes + first.held.own
        if self.limits.memory < alone + LEAST_SHARE:
            raise UsageError(
                f"--memory {self.limits.memory / 1e6:.0f}MB: one worker takes {alone / 1e6:.0f} MB by itself",
                hint=f"give at least {(alone + LEAST_SHARE) / 1e6:.0f}MB",
            )
        if not self.devices:
            self.devices = pick_devices(self.limits.device, len(first.gpus))
            self._gpus = first.gpus
            if self.devices != ("cpu",) and self.limits.workers is None:
                self._merging = min(self._merging, 2 * len(self.devices))

    def _share(self, number: int, given: int) -> Share:
        device = self.devices[number % len(self.devices)]
        threads = max(1, self.limits.cores // self._merging)
        if device == "cpu":
            return Share(threads, in_flight(given), device)
        beside = len(range(number % len(self.devices), self._merging, len(self.devices)))
        budget = self.limits.gpu_memory or int(0.8 * self._gpus[int(device.partition(":")[2])])
        return Share(min(threads, 2), in_flight(given), device, max(1 << 20, budget // beside - GPU_CONTEXT))


def check_device(wanted: str) -> None:
    """Refuse what can be no choice of devices.

    Raises: UsageError.
    """
    if wanted not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:\d+(,cuda:\d+)*", wanted):
        raise UsageError(f"--device {wanted}: no such device", hint="auto, cpu, cuda (all GPUs) or a list as cuda:0,cuda:2")


def pick_devices(wanted: str, gpus: int) -> tuple[str, ...]:
    """The devices that workers take in turn: `auto` means all GPUs, or the CPU where there are none.

    Raises: UsageError for a device that is absent.
    """
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return ("cpu",)
    named = tuple(wanted.split(",")) if ":" in wanted else tuple(f"cuda:{i}" for i in range(gpus))
    absent = [name for name in named if int(name.partition(":")[2]) >= gpus]
    if absent or not named:
        name = absent[0] if absent else wanted
        raise UsageError(f"--device {name}: this machine has {gpus} CUDA devices", hint="use --device cpu")
    return named


def in_flight(given: int) -> int:
    """Bytes of tensors that may be in flight in a share of memory; the rest is the allocator's, and what goes uncounted."""
    return max(0, int((given - _APART) / _OVERHEAD))


def with_overhead(needs: int) -> int:
    """The share that a step of so many bytes needs."""
    return int(needs * _OVERHEAD) + _APART


def _signal(pid: int, number: signal.Signals) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").strip().splitlines() if path.exists() else []


def _cause_of_death(code: int | None) -> str:
    if code is None:
        return "its worker died"
    if code >= 0:
        return f"its worker ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"its worker was killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")

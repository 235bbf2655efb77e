"""A worker process of a batch on one machine: takes tasks from a connection, one after the other, until it is closed.

Signals that end a batch (Ctrl-C, SIGTERM) reach its workers too, from terminals, Slurm and systemd; a worker ignores them, so
that the batch decides. SIGUSR1 is the batch's word to stop at once and leave nothing half-written.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import queue
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import NoReturn

from ..memory import anonymous, anonymous_of
from .tasks import Finished, Progress, Task

STOP = signal.SIGUSR1
_KEPT = 32 << 20
"""Bytes that a worker may keep for its next merge, which saves the system from clearing the same pages again."""
_BEFORE_FORCE = 10.0
"""Seconds a worker whose batch died may take to clean up."""


@dataclass(frozen=True)
class Held:
    """Anonymous memory of a worker that does nothing. `whole`: all of it; `own`: its part, of what it shares with others."""

    whole: int
    own: int


@dataclass(frozen=True)
class Ready:
    """A worker is there. `gpus`: memory of each CUDA device in bytes."""

    pid: int
    held: Held
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class Idle:
    """A task is over; what the worker holds after it."""

    finished: Finished
    held: Held


class _Stopped(BaseException):
    """The batch wants an end; unwinds like Ctrl-C, so that staged folders are removed."""


def serve(connection: Connection) -> int:
    """Work until the connection is closed, or the batch says stop; the exit code of the process."""
    signal.signal(STOP, _stop)
    faulthandler.enable()
    try:
        _serve(connection)
    except (_Stopped, BrokenPipeError, ConnectionResetError):
        return 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1


def _serve(connection: Connection) -> NoReturn:
    from .work import carry_out

    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    held = _held()
    connection.send(Ready(os.getpid(), held, _gpus()))
    while True:
        task = tasks.get()
        result = carry_out(task, lambda sites, task=task: connection.send(Progress(task.number, sites)))
        if task.kind != "check":
            held = _give_back_memory(held)
        connection.send(Idle(Finished(task.number, result), held))


def _receive(connection: Connection, tasks: queue.SimpleQueue[Task]) -> None:
    """Take tasks in a thread, which also sees the batch's end when it comes in the middle of a merge."""
    try:
        while True:
            tasks.put(connection.recv())
    except (EOFError, OSError):
        os.kill(os.getpid(), STOP)
        threading.Event().wait(_BEFORE_FORCE)
        os._exit(1)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise _Stopped


def _gpus() -> tuple[int, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))


def _held() -> Held:
    return Held(anonymous(), anonymous_of(os.getpid()))


def _give_back_memory(before: Held) -> Held:
    """Return what the allocator keeps to the system where it is much, as other workers share the budget; what is held then."""
    libc = ctypes.CDLL(None)
    if anonymous() - before.whole > _KEPT and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return _held()

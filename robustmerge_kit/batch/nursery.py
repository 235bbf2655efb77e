"""A process that has imported everything a merge needs, and forks workers: torch is imported once for all of them.

It has one thread, so that forking is safe, and never touches a GPU. Requests come as JSON over a socket of packets:
{"start": LOG} with a file descriptor, the worker's end of its connection; {"bury": PID}, answered with the exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

PACKAGE = Path(__file__).absolute().parents[2]

_PACKET = 65536
_LAST_BREATH = 5.0
"""Seconds a worker that has closed its connection may take to end."""


class Nursery:
    """The batch's end: starts the process, asks it for workers, hears how they ended."""

    def __init__(self, log: Path) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-c", f"from {__name__} import main; main({theirs.fileno()})"]
        # It and its workers must never see the signals that end the batch, not even before they can ignore them.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self, log: Path) -> Connection:
        """Ask for a worker; it says that it is there over the connection, whose end says that it is gone."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):  # a nursery that is gone closes the connection
            socket.send_fds(self._socket, [json.dumps({"start": str(log)}).encode()], [theirs.fileno()])
        return Connection(ours.detach())

    def bury(self, pid: int) -> int | None:
        """The exit code of a worker whose connection has ended, negative for a signal; None where nobody knows."""
        try:
            self._socket.send(json.dumps({"bury": pid}).encode())
            answer = self._socket.recv(_PACKET)
            return json.loads(answer) if answer else None
        except OSError:
            return None

    def close(self) -> None:
        """End the process; workers that still run end by themselves."""
        self._socket.close()
        try:
            self._process.wait(_LAST_BREATH)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(handle: int) -> None:
    """The process's end: import, then fork a worker for every request, until the batch is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    requests = socket.socket(fileno=handle)
    import torch

    from ..resources import tune_process
    from .worker import serve

    importlib.import_module(".work", __package__)  # brings along everything that merges
    torch.set_num_threads(1)
    tune_process()
    while True:
        packet, handles, _, _ = socket.recv_fds(requests, _PACKET, 1)
        if not packet:
            break
        request = json.loads(packet)
        if "bury" in request:
            requests.send(json.dumps(_exit_code(request["bury"])).encode())
            continue
        if os.fork() == 0:
            requests.close()
            log = os.open(request["start"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os._exit(serve(Connection(handles[0])))
        os.close(handles[0])
    with contextlib.suppress(ChildProcessError):  # what workers have used counts as used by the batch once they are waited for
        while True:
            os.waitpid(-1, 0)


def _exit_code(pid: int) -> int | None:
    deadline = time.monotonic() + _LAST_BREATH
    try:
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
    except ChildProcessError:
        return None


def _environment() -> dict[str, str]:
    """The environment of workers, which are to find the same package, and whose libraries start no threads of their own."""
    path = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **one_thread}

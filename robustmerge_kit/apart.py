"""Files hashed by a process of its own, while this one imports and merges.

A thread that hashes asks for the interpreter after every piece and so slows what the others do; a process does not. It is run
from this very file, needs nothing but the standard library, and ends when the process that started it does.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from io import BufferedReader
from pathlib import Path

WORTH = 32_000_000
"""Bytes from which on a file is hashed apart."""

PIECE = 1 << 20


class HashedApart:
    """Hashes one file after another, asked from any thread; where that fails `ask` has no answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, path: Path, file: BufferedReader) -> str | None:
        """The sha256 of an open file, by its path; None where the path has become another file, or nobody answers.

        Raises: InterruptedError once closed.
        """
        stat = os.fstat(file.fileno())
        if stat.st_size < WORTH or "\n" in str(path):
            return None
        with self._lock:
            answer = self._answer(path)
        if self._closed:
            raise InterruptedError("no longer wanted")
        found = answer.split()
        return found[0].decode() if found[1:] == [b"%d" % stat.st_dev, b"%d" % stat.st_ino, b"%d" % stat.st_size] else None

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._closed = True
        if self._child is not None:
            self._child.kill()
            self._child.communicate()

    def _answer(self, path: Path) -> bytes:
        try:
            if self._child is None and not self._closed:
                command = [sys.executable, "-I", "-S", __file__]
                self._child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            if self._child is None or self._child.stdin is None or self._child.stdout is None:
                return b""
            self._child.stdin.write(os.fsencode(path) + b"\n")
            self._child.stdin.flush()
            return self._child.stdout.readline()
        except (OSError, ValueError):
            return b""


def _answer_all() -> None:
    """For every path on stdin a line on stdout: sha256, device, inode and size of the file; empty where it cannot be read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks, and it ends this one
    os.nice(10)
    parent = os.getppid()
    buffer = memoryview(bytearray(PIECE))
    for line in sys.stdin.buffer:
        answer = b""
        try:
            with open(line[:-1], "rb", buffering=0) as file:  # noqa: PTH123
                stat, found = os.fstat(file.fileno()), hashlib.sha256()
                while count := file.readinto(buffer):
                    found.update(buffer[:count])
                    if os.getppid() != parent:
                        return
                answer = b"%s %d %d %d" % (found.hexdigest().encode(), stat.st_dev, stat.st_ino, stat.st_size)
        except OSError:
            pass
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _answer_all()

"""The sha256 of files; none is read twice while it stays the same, by one process or by all that share a folder.

A file stays the same while its path, inode, size, and times of modification and of change do; the last cannot be set by hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Generator
from io import BufferedReader
from pathlib import Path

SETTLED = 0.1
"""Seconds after a change in which another change might leave the same time behind; nothing is remembered of such a file."""

PIECE = 4_000_000
"""Bytes hashed at a time, at most."""

_known: dict[tuple[str | int, ...], str] = {}
_shared: Path | None = None


def share_digests(folder: Path | None) -> None:
    """From here on, keep what is hashed in `folder`, and take from there what others have hashed; None: alone again."""
    global _shared
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    _shared = folder


def settled_state(path: Path) -> tuple[int, ...] | None:
    """What stays the same while a file does; None for one that changed a moment ago, or cannot be looked at."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return None if time.time() - stat.st_ctime < SETTLED else (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


Ask = Callable[[Path, BufferedReader], "str | None"]
"""Somebody else who may know the sha256 of an open file."""


def sha256_of(path: Path, ask: Ask = lambda path, file: None) -> tuple[int, str]:
    """Size in bytes and sha256 of a file; read here unless the one asked has an answer.

    Raises: OSError when it cannot be read.
    """
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        key = _key(path, stat)
        if time.time() - stat.st_ctime < SETTLED:
            return stat.st_size, ask(path, file) or _hash(file)
        if key not in _known:
            with _entry(key) as entry:
                found = None if entry is None else _stored(entry)
                if found is None:
                    found = ask(path, file) or _hash(file)
                    if _key(path, os.fstat(file.fileno())) != key:
                        return os.fstat(file.fileno()).st_size, found
                    if entry is not None:
                        os.pwrite(entry, f"{found}\n".encode(), 0)
                _known[key] = found
        return stat.st_size, _known[key]


def _key(path: Path, stat: os.stat_result) -> tuple[str | int, ...]:
    return (os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _hash(file: BufferedReader) -> str:
    """The sha256 of what is left of a file, in long pieces: after each, the thread waits for its turn of the interpreter."""
    found = hashlib.sha256()
    buffer = memoryview(bytearray(max(1, min(PIECE, os.fstat(file.fileno()).st_size))))
    while count := file.readinto(buffer):
        found.update(buffer[:count])
    return found.hexdigest()


@contextlib.contextmanager
def _entry(key: tuple[str | int, ...]) -> Generator[int | None]:
    """The shared folder's file about one input, locked, so that of several processes one reads the input; None: not shared."""
    if _shared is None:
        yield None
        return
    name = hashlib.sha256(repr(key).encode()).hexdigest()
    try:
        handle = os.open(_shared / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        yield None
        return
    try:
        with contextlib.suppress(OSError):  # without locks on this file system several may read the input, and write the same
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _stored(entry: int) -> str | None:
    """What another process found; None where it has not, or was killed while it wrote."""
    text = os.pread(entry, 100, 0)
    return text[:64].decode() if re.fullmatch(rb"[0-9a-f]{64}\n", text) else None

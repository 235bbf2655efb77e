"""The right to write one output, held by at most one process; a process that dies in whatever way gives it back."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from ..errors import OutputError


class Claimed(OutputError):
    """Another process holds the claim."""


@contextlib.contextmanager
def claim(target: Path) -> Generator[None]:
    """Hold the claim of `target`, a lock on a file beside it that vanishes at the end.

    Raises: Claimed when another process holds it, OutputError where no file can be made.
    """
    path = claim_file(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = _take(path)
    except BlockingIOError as error:
        raise Claimed("another batch is writing it", where=str(target), hint="wait for it, or choose another name") from error
    except OSError as error:
        raise OutputError.from_os(error, target) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def claim_file(target: Path) -> Path:
    """The file whose lock is the claim; it lies there while the claim is held, and after its holder was killed."""
    return target.with_name(f".{target.name}.rmkit-claim")


def is_held(target: Path) -> bool | None:
    """Whether a living process holds the claim of `target`; None when nobody has left one."""
    path = claim_file(target)
    try:
        # Listing the folder makes a network file system look again.
        if path.name not in os.listdir(path.parent):  # noqa: PTH208
            return None
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _take(path: Path) -> int:
    """A handle on the locked file that has the name.

    Raises: BlockingIOError when it is locked.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                return handle  # this file system has no locks; the staged folder still appears whole or not at all
            if _is_named(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed the file between our opening and our locking it


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False

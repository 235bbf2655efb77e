"""An output folder that appears whole or not at all: staged beside its final name, then renamed into place."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Generator
from pathlib import Path

from ..errors import OutputError
from .journal import journalled_identity

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

UNFINISHED = "what was finished is kept: the same command goes on with it, --restart discards it"
"""Note on an exception that leaves an unfinished folder behind."""


@contextlib.contextmanager
def staged(target: Path, overwrite: bool, identity: str | None = None) -> Generator[Path]:
    """A folder to fill; it takes the name `target` when the block ends without an exception, and vanishes otherwise.

    `overwrite` lets it replace what is there, in one step: at every moment the name stands for the old folder or the new one.
    `identity` stands for what will be written: a folder that a run with the same identity left unfinished, with a journal, is
    given again, and one that a full disk or a signal leaves unfinished stays.

    Raises: OutputError when the target exists, cannot be created, or another run is writing it.
    """
    target = Path(os.path.realpath(target))
    repair(target)
    check_free(target, overwrite)
    stage = unfinished_stage(target, identity)
    _remove_stale(target, stage)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if stage is None:
            stage = _sibling(target, "part")
            stage.mkdir()
    except OSError as error:
        raise OutputError.from_os(error, target) from error
    lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finished = False
    try:
        _lock_for(lock, target)
        yield stage
        finished = True
        _sync_tree(stage)
        try:
            _publish(stage, target, overwrite)
        except OSError as error:
            raise OutputError.from_os(error, target) from error
    except BaseException as error:
        finished = finished or identity is None or (isinstance(error, Exception) and not isinstance(error, OutputError))
        if not finished:
            error.add_note(UNFINISHED)
        raise
    finally:
        os.close(lock)
        if finished:
            shutil.rmtree(stage, ignore_errors=True)


def unfinished_bytes(target: Path, identity: str | None) -> int:
    """Bytes that an unfinished run with this identity has written already."""
    stage = unfinished_stage(target, identity)
    return sum(path.stat().st_blocks * 512 for path in stage.rglob("*") if path.is_file()) if stage else 0


def unfinished_stage(target: Path, identity: str | None) -> Path | None:
    """The stage of another run with this identity, as its journal says."""
    if identity is None:
        return None
    target = Path(os.path.realpath(target))
    stages = target.parent.glob(f".{_escape(target.name)}.rmkit-part-*")
    return next((stage for stage in sorted(stages) if journalled_identity(stage) == identity), None)


def check_free(target: Path, overwrite: bool) -> None:
    """Refuse a target that is taken; an empty folder is free.

    Raises: OutputError.
    """
    try:
        if target.is_dir():
            if not overwrite and any(target.iterdir()):
                raise OutputError("exists already", where=str(target), hint="choose another name, or add --overwrite")
        elif target.exists() or target.is_symlink():
            raise OutputError("exists and is not a folder", where=str(target), hint="choose another name")
        above = next(place for place in target.parents if place.exists())
        if not above.is_dir():
            raise OutputError(f"{above} is not a folder", where=str(target), hint="choose another name")
    except OSError as error:
        raise OutputError.from_os(error, target) from error


def repair(target: Path) -> None:
    """Finish a replacement that was cut short between its two renames: the new folder was whole before the first of them.

    Raises: OutputError when the run that is replacing the target is still alive.
    """
    journal = _journal(target)
    try:
        text = journal.read_text()
    except OSError:
        return
    try:
        stage, old = _journalled(text, target)
    except (ValueError, KeyError, TypeError):
        # A journal that cannot be understood was never completed, so no rename has happened yet.
        journal.unlink(missing_ok=True)
        return
    with _unowned(stage, target):
        if not target.exists():
            (stage if stage.exists() else old).rename(target)
        shutil.rmtree(old, ignore_errors=True)
        journal.unlink(missing_ok=True)


def clear_leftovers(target: Path) -> None:
    """Finish or remove what killed runs left beside the target.

    Raises: OutputError when a run is writing it.
    """
    repair(target)
    _remove_stale(target)


def _journalled(text: str, target: Path) -> tuple[Path, Path]:
    """Stage and old folder that a journal names; both are siblings of the target with names that only rmkit gives."""
    entry = json.loads(text)
    for role, name in (("part", entry["stage"]), ("old", entry["old"])):
        if not name.startswith(f".{target.name}.rmkit-{role}-") or "/" in name:
            raise ValueError(name)
    return target.with_name(entry["stage"]), target.with_name(entry["old"])


def _publish(stage: Path, target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        if target.exists():
            target.rmdir()
        if not _renameat2(stage, target, _RENAME_NOREPLACE):
            stage.rename(target)
    elif not overwrite:
        raise OutputError("appeared while the merge was running", where=str(target), hint="choose another name")
    elif not _renameat2(stage, target, _RENAME_EXCHANGE):
        _swap_journalled(stage, target)
    _sync(target.parent)


def _swap_journalled(stage: Path, target: Path) -> None:
    """Two renames, with a note on disk that lets the next run repair a crash between them."""
    old = _sibling(target, "old")
    journal = _journal(target)
    with journal.open("x") as file:
        json.dump({"stage": stage.name, "old": old.name}, file)
        file.flush()
        os.fsync(file.fileno())
    _sync(target.parent)
    target.rename(old)
    stage.rename(target)
    _sync(target.parent)
    journal.unlink()
    shutil.rmtree(old, ignore_errors=True)


def _renameat2(source: Path, destination: Path, flags: int) -> bool:
    """Linux's rename with flags; False where the kernel or the file system does not have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(destination))


def _remove_stale(target: Path, kept: Path | None = None) -> None:
    """Remove what killed runs left behind, except a stage that is `kept`.

    Raises: OutputError when another run is writing the same target.
    """
    for stage in target.parent.glob(f".{_escape(target.name)}.rmkit-part-*"):
        if stage == kept:
            continue
        with _unowned(stage, target):
            shutil.rmtree(stage, ignore_errors=True)
    for old in target.parent.glob(f".{_escape(target.name)}.rmkit-old-*"):
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _unowned(stage: Path, target: Path) -> Generator[None]:
    """Hold a stage's lock, which its run holds while it lives; a stage that is gone needs no lock."""
    try:
        lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        _lock_for(lock, target)
        yield
    finally:
        os.close(lock)


def _lock_for(folder: int, target: Path) -> None:
    """Lock an open stage; where the file system has no locks, go without.

    Raises: OutputError when another process holds the lock.
    """
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            "another rmkit run is writing it", where=str(target), hint="wait for that run or choose another name"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL, errno.ENOSYS):
            raise


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.rmkit-{role}-{secrets.token_hex(4)}")


def _journal(target: Path) -> Path:
    return target.with_name(f".{target.name}.rmkit-swap.json")


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~_umask())
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OutputError.from_os(error, path) from error


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

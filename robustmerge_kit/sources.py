"""Where an input lies: a reference as a user writes it -> a local folder, its revision and the hashes of its files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import InputError, RmkitError, raise_all
from .folders import CONFIG


@dataclass(frozen=True)
class Source:
    """An input that has been found. `reference` is what the user wrote, `folder` holds the files.

    `file` is set when the user named one weights file instead of its folder. `repository` and `revision` (a commit id) are
    set for Hub references only.
    """

    reference: str
    folder: Path
    file: Path | None = None
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and sha256 of a file, as the receipt and the lock file record them."""

    size: int
    sha256: str


@dataclass(frozen=True)
class HubReference:
    """The parts of `org/name[@revision][:subfolder]`."""

    repository: str
    revision: str | None = None
    subfolder: str = ""


_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9_][\w.\-]*)(@(?P<revision>[^\s:@]+))?(:(?P<subfolder>.*))?", re.ASCII
)
_DRIVE = re.compile(r"[A-Za-z]:([\\/]|$)")
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".json", ".yaml", ".yml")


def resolve(reference: str, place: Path) -> Source:
    """Find an input: an existing or local-looking path (relative to `place`), else `org/name[@revision][:subfolder]`.

    A path wins over a repository of the same spelling. `path:subfolder` works on both. A path that does not exist but looks
    local (leading . / ~, a drive letter, a backslash, a first folder that exists) is never asked for on the Hub.
    Raises: InputError when nothing is there, the subfolder leaves its folder, or the Hub refuses.
    """
    found = _resolve_local(reference, place)
    if found is not None:
        return found
    from .hub import fetch_adapter

    parts = parse_hub_reference(reference)
    folder, file, commit = fetch_adapter(parts, reference)
    return Source(reference, folder, file, parts.repository, commit)


def resolve_all(references: Sequence[str], place: Path) -> tuple[Source, ...]:
    """Find several inputs; equal references are looked up once, downloads run side by side.

    Raises: every InputError met, together.
    """
    unique = list(dict.fromkeys(references))
    found: dict[str, Source | RmkitError | None] = {one: _attempt(_resolve_local, one, place) for one in unique}
    remote = [one for one in unique if found[one] is None]
    if remote:
        with ThreadPoolExecutor(max_workers=min(4, len(remote))) as pool:
            found.update(zip(remote, pool.map(lambda one: _attempt(resolve, one, place), remote), strict=True))
    raise_all(value for value in found.values() if isinstance(value, RmkitError))
    return tuple(source for one in references if isinstance(source := found[one], Source))


def digest(paths: Iterable[Path], background: bool = False) -> dict[Path, FileDigest]:
    """Size and sha256 of files, each read once, several side by side; in the `background` other threads go first.

    Raises: InputError when a file cannot be read.
    """
    unique = list(dict.fromkeys(paths))
    threads = min(4, os.cpu_count() or 1, max(1, len(unique)))
    with ThreadPoolExecutor(threads, initializer=_step_back if background else None) as pool:
        return dict(zip(unique, pool.map(_digest_one, unique), strict=True))


def parse_hub_reference(reference: str) -> HubReference:
    """Split `org/name[@revision][:subfolder]`.

    Raises: InputError when the text has another form or the subfolder leaves the repository.
    """
    match = _HUB.fullmatch(reference)
    if match is None or ".." in match["repository"] or "--" in match["repository"]:
        raise InputError(
            "no such folder, and not a Hub reference of the form org/name[@revision][:subfolder]",
            where=reference,
            hint="check the spelling; relative paths start at the recipe's folder, on the command line here",
        )
    return HubReference(match["repository"], match["revision"], _inside(match["subfolder"] or "", reference))


def _attempt(find: object, reference: str, place: Path) -> Source | RmkitError | None:
    try:
        return find(reference, place)  # pyright: ignore
    except RmkitError as error:
        return error


def _resolve_local(reference: str, place: Path) -> Source | None:
    """The local folder or file, None when the reference can only be meant for the Hub."""
    if not reference.strip() or "\0" in reference:
        raise InputError("an input needs a folder or a Hub reference", where=repr(reference))
    whole = place / Path(reference).expanduser() if reference.startswith("~") else place / reference
    if os.path.exists(whole):  # noqa: PTH110 - Path.exists raises on names that are too long
        return _at(whole, reference)
    for index in reversed([i for i, letter in enumerate(reference) if letter == ":"]):
        left, right = reference[:index], reference[index + 1 :]
        folder = place / Path(left).expanduser() if left.startswith("~") else place / left
        if left and os.path.isdir(folder):  # noqa: PTH112
            inside = _inside(right, reference)
            if not os.path.exists(folder / inside):  # noqa: PTH110
                there = sorted(child.name for child in folder.iterdir() if (child / CONFIG).is_file())
                listed = f"; adapters there: {', '.join(there[:12])}" if there else ""
                raise InputError(f"no {right!r} in the folder {left}{listed}", where=reference)
            return _at(folder / inside, reference)
    if _looks_local(reference, place):
        raise InputError("no such folder", where=reference, hint=f"looked for {whole}")
    return None


def _at(path: Path, reference: str) -> Source:
    path = path.absolute()
    if path.is_dir():
        return Source(reference, path)
    if not path.is_file():
        raise InputError("is neither a folder nor a file", where=reference)
    if path.name == CONFIG:
        return Source(reference, path.parent)
    return Source(reference, path.parent, path)


def _looks_local(reference: str, place: Path) -> bool:
    if reference[0] in "./~\\" or "\\" in reference or _DRIVE.match(reference):
        return True
    if reference.endswith(_FILE_SUFFIXES) and ":" not in reference:
        return True
    first, slash, _ = reference.partition("/")
    return not slash or os.path.isdir(place / first)  # noqa: PTH112


def _inside(subfolder: str, reference: str) -> str:
    """A subfolder as a clean relative path with `/`, refused when it leads outside."""
    pure = PurePosixPath(subfolder.replace("\\", "/"))
    if pure.is_absolute() or _DRIVE.match(subfolder) or ".." in pure.parts:
        raise InputError(f"the subfolder {subfolder!r} leads outside of its folder", where=reference)
    return "" if str(pure) == "." else str(pure)


def _step_back() -> None:
    """Lower the priority of the calling thread, which Linux keeps for each thread."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _digest_one(path: Path) -> FileDigest:
    try:
        with path.open("rb") as file:
            return FileDigest(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error

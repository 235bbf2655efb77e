"""Where an input lies: a reference as a user writes it -> a local folder, its revision and the hashes of its files."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from . import git
from .digests import Ask, sha256_of
from .disclosure import UNPRINTABLE
from .errors import InputError, RmkitError, raise_all
from .folders import CONFIG, DRIVE, inside
from .links import as_path, fence, leads_out


@dataclass(frozen=True)
class Source:
    """An input that has been found. `reference` is what the user wrote, `folder` holds the files.

    `file` is set when the user named one weights file instead of its folder. `repository` and `revision` (a commit id) are
    set for references to the Hub and to git repositories.
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
    """The parts of `org/name[@revision][:subfolder]`, before which `datasets/` may stand."""

    repository: str
    revision: str | None = None
    subfolder: str = ""
    kind: str = "model"


_HUB = re.compile(
    r"(hf://)?(?P<kind>(models|datasets)/(?=[^/]+/))?(?P<repository>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9_][\w.\-]*)"
    r"(@(?P<revision>[^\s:@]+))?(:(?P<subfolder>.*))?",
    re.ASCII,
)
_HUB_ONLY = "hf://"
"""Before a Hub reference: no local folder is meant, whatever lies there."""
LONGEST_REFERENCE = 4096
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".json", ".yaml", ".yml")


def resolve(reference: str, place: Path, commit: str | None = None) -> Source:
    """Find an input: an existing or local-looking path (relative to `place`), else `org/name[@revision][:subfolder]`.

    A path wins over a repository of the same spelling. `path:subfolder` works on both. A path that does not exist but looks
    local (leading . / ~, a drive letter, a backslash, a first folder that exists) is never asked for on the Hub. `hf://` before
    a Hub reference keeps paths out of it; `git+https://..` names a git repository. `commit` is taken instead of the revision.
    Raises: InputError when nothing is there, the subfolder leaves its folder, or the Hub or git refuses.
    """
    found = _resolve_local(reference, place)
    if found is not None:
        return found
    if git.is_git(reference):
        named = git.parse_git_reference(reference)
        named = replace(named, revision=commit or named.revision)
        folder, file, commit = git.fetch_adapter(named, reference)
        return Source(git.shown(reference), folder, file, f"{git.PREFIX}{named.url}", commit)
    from .hub import fetch_adapter

    parts = parse_hub_reference(reference)
    parts = replace(parts, revision=commit or parts.revision)
    folder, file, commit = fetch_adapter(parts, reference)
    return Source(reference, folder, file, parts.repository, commit)


def resolve_base(reference: str, place: Path, commit: str | None = None) -> Source:
    """Find a base model: an existing or local-looking path (relative to `place`), else a Hub reference; as `resolve`.

    Raises: InputError when nothing is there, or the Hub refuses.
    """
    found = _resolve_local(reference, place)
    if found is not None:
        return found
    from .hub import fetch_base

    parts = parse_hub_reference(reference)
    parts = replace(parts, revision=commit or parts.revision)
    folder, commit = fetch_base(parts, reference)
    return Source(reference, folder, None, parts.repository, commit)


def resolve_all(
    references: Sequence[str], place: Path, called: Sequence[str] = (), commits: Mapping[str, str] | None = None
) -> tuple[Source, ...]:
    """Find several inputs; equal references are looked up once, downloads run side by side.

    called: what messages call each of them, before its reference. commits: what to take instead of a reference's revision.
    Raises: every InputError met, together.
    """
    unique = list(dict.fromkeys(references))
    found: dict[str, Source | RmkitError | None] = {one: _attempt(_resolve_local, one, place) for one in unique}
    remote = [one for one in unique if found[one] is None]

    def fetch(one: str) -> Source | RmkitError | None:
        return _attempt(partial(resolve, commit=(commits or {}).get(git.shown(one))), one, place)

    if remote:
        with ThreadPoolExecutor(max_workers=min(4, len(remote))) as pool:
            found.update(zip(remote, pool.map(fetch, remote), strict=True))
    failed = {one: value for one, value in found.items() if isinstance(value, RmkitError)}
    for one, error in failed.items() if called else ():
        error.where = f"{called[references.index(one)]}: {error.where}".removesuffix(": ")
    raise_all(failed.values())
    return tuple(source for one in references if isinstance(source := found[one], Source))


def is_local(reference: str, place: Path) -> bool:
    """Whether a reference is a path for `resolve`: it exists, its first part does, or it looks like nothing else.

    Raises: InputError for a reference without any letter.
    """
    try:
        return _resolve_local(reference, place) is not None
    except InputError:
        return bool(reference.strip())


def digest(paths: Iterable[Path], background: bool = False, ask: Ask = lambda path, file: None) -> dict[Path, FileDigest]:
    """Size and sha256 of files, each read once, several side by side; in the `background` other threads go first.

    ask: somebody else who may know, asked first.

    Raises: InputError when a file cannot be read.
    """
    unique = list(dict.fromkeys(paths))
    threads = min(4, os.cpu_count() or 1, max(1, len(unique)))
    with ThreadPoolExecutor(threads, initializer=_step_back if background else None) as pool:
        return dict(zip(unique, pool.map(lambda path: _digest_one(path, ask), unique), strict=True))


def parse_hub_reference(reference: str) -> HubReference:
    """Split `[hf://][datasets/]org/name[@revision][:subfolder]`.

    Raises: InputError when the text has another form or the subfolder leaves the repository.
    """
    match = _HUB.fullmatch(reference)
    if match is None or ".." in match["repository"] or "--" in match["repository"]:
        raise InputError(
            "no such folder, and not a Hub reference of the form org/name[@revision][:subfolder]",
            where=reference,
            hint="check the spelling; relative paths start at the recipe's folder, on the command line here",
        )
    if match["revision"] and {"", ".", ".."} & set(match["revision"].split("/")):
        raise InputError(f"{match['revision']!r} is no branch, tag or commit", where=reference)
    kind = "dataset" if match["kind"] == "datasets/" else "model"
    return HubReference(match["repository"], match["revision"], inside(match["subfolder"] or "", reference), kind)


def _attempt(find: object, reference: str, place: Path) -> Source | RmkitError | None:
    try:
        return find(reference, place)  # pyright: ignore
    except RmkitError as error:
        return error


def _resolve_local(reference: str, place: Path) -> Source | None:
    """The local folder or file, None when the reference can only be meant for the Hub."""
    if not reference.strip() or "\0" in reference:
        raise InputError("an input needs a folder or a Hub reference", where=repr(reference))
    if UNPRINTABLE.search(reference):
        raise InputError("a reference with control characters", where=reference, hint="rename the folder")
    if len(reference) > LONGEST_REFERENCE:
        raise InputError(f"no such folder; a reference has at most {LONGEST_REFERENCE} characters, this one {len(reference)}")
    if reference.startswith(_HUB_ONLY) or git.is_git(reference):
        return None
    whole = place / as_path(reference)
    if os.path.exists(whole):  # noqa: PTH110 - Path.exists raises on names that are too long
        return _at(whole, reference)
    for index in reversed([i for i, letter in enumerate(reference) if letter == ":"]):
        left, right = reference[:index], reference[index + 1 :]
        folder = place / as_path(left)
        if left and os.path.isdir(folder):  # noqa: PTH112
            below = inside(right, reference)
            if not os.path.exists(folder / below):  # noqa: PTH110
                there = sorted(child.name for child in folder.iterdir() if (child / CONFIG).is_file())
                listed = f"; adapters there: {', '.join(there[:12])}" if there else ""
                raise InputError(f"no {right!r} in the folder {left}{listed}", where=reference)
            if leads_out(folder / below, fence(folder)):
                what = f"the subfolder {right!r} is a link that leads outside of its folder"
                raise InputError(what, where=reference, hint=f"name its real place, {os.path.realpath(folder / below)}")
            return _at(folder / below, reference)
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
    if reference[0] in "./~\\" or "\\" in reference or DRIVE.match(reference):
        return True
    if reference.endswith(_FILE_SUFFIXES) and ":" not in reference:
        return True
    first, slash, _ = reference.partition("/")
    return not slash or os.path.isdir(place / first)  # noqa: PTH112


def _step_back() -> None:
    """Lower the priority of the calling thread, which Linux keeps for each thread."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _digest_one(path: Path, ask: Ask) -> FileDigest:
    try:
        return FileDigest(*sha256_of(path, ask))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error

"""Where a recipe lives - a folder here, a repository, a web address - and what its relative references mean there.

A recipe from elsewhere comes from a stranger: it may name files of its own repository, the Hub, and other servers by https, and
nothing of this machine.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from . import addresses, git, hub
from .errors import InputError, RecipeError
from .folders import DRIVE
from .links import as_path
from .sources import HubReference, is_local, parse_hub_reference

_HUB_ONLY = "hf://"


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path


@dataclass(frozen=True)
class InRepository:
    """A folder inside a repository, at one commit."""

    repository: hub.HubRepository | git.GitRepository
    folder: str


@dataclass(frozen=True)
class OnWeb:
    """A file's own web address, which is no folder: only other files have an address relative to it."""

    url: str


Home = Folder | InRepository | OnWeb


@dataclass(frozen=True)
class Opened:
    """A recipe's file: its content, how messages and receipts call it, the commit it was taken from.

    identity: equal for two references to one file. told: the content as text, where it came as text.
    """

    content: bytes
    home: Home
    label: str
    reference: str
    identity: str
    stem: str
    revision: str | None = None
    told: str | None = None

    @property
    def text(self) -> str:
        """The content as text.

        Raises: RecipeError for bytes that are not UTF-8.
        """
        if self.told is not None:
            return self.told
        try:
            return self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = self.content[: error.start].count(b"\n") + 1
            what = f"byte {self.content[error.start]:#04x} is not UTF-8"
            raise RecipeError(what, where=f"{self.label}:{line}", hint="save it as UTF-8") from error

    @property
    def sha256(self) -> str:
        """The hash of the content."""
        return hashlib.sha256(self.content).hexdigest()


def open_text(reference: str, home: Home, commits: Mapping[str, str], limit: int) -> Opened:
    """Read a recipe's file of at most `limit` bytes; of a larger one here, one byte more.

    A reference is a path from `home`, `org/name[@revision]:path` on the Hub (`datasets/org/name` for a data set), an https
    address, or `git+https://host/name.git[@revision]:path`. `commits` holds what to take instead of a reference's revision.

    Raises: RecipeError when it is not there, is refused, or may not be asked for from `home`.
    """
    try:
        if git.is_git(reference):
            return _open_in_git(reference, home, commits, limit)
        if addresses.is_address(reference):
            return _open_on_web(reference, home, limit)
        if isinstance(home, Folder):
            named = None if _exists(home.path, reference) else _hub_file(reference)
            return open_local(reference, home, limit) if named is None else _open_on_hub(named, reference, commits, limit)
        path = _path_from(reference, home)
        if isinstance(home, InRepository) and path is not None:
            return _open_inside(home.repository, path, limit)
        named = _hub_file(reference)
        if named is not None:
            return _open_on_hub(named, reference, commits, limit)
        if isinstance(home, OnWeb):
            return _open_on_web(addresses.join(home.url, reference), home, limit)
        raise InputError("its repository has no such file", where=reference)
    except InputError as error:
        raise RecipeError(error.what, where=error.where, hint=error.hint) from error


def input_from(reference: str, home: Home, place: Path) -> str:
    """The reference to an input as it must be written for a recipe in the folder `place`, given that it stands in `home`.

    Raises: RmkitError for a path that `home` cannot have, and for what a recipe from elsewhere may not name.
    """
    if isinstance(home, Folder):
        if not is_local(reference, home.path):
            return _on_hub(reference, place)
        return _moved(reference, home.path, place)
    if git.is_git(reference):
        _refuse_near(git.parse_git_reference(reference).url, reference, home)
        return reference
    path = _path_from(reference, home)
    if isinstance(home, InRepository) and path is not None:
        return home.repository.spelled(path)
    if reference.startswith(".") or reference.partition("/")[2].partition(":")[0].count("/"):
        way = (
            "its repository has no such folder" if isinstance(home, InRepository) else "a web address has no folders beside it"
        )
        raise InputError(way, where=reference, hint="name inputs on the Hub, org/name[@revision][:subfolder]")
    parse_hub_reference(reference)
    return _on_hub(reference, place)


def output_from(path: str, home: Home, place: Path) -> str:
    """The path of an output as it must be written for a recipe in the folder `place`, given that it stands in `home`.

    Raises: RecipeError when a recipe from elsewhere wants to write outside of `place`.
    """
    if isinstance(home, Folder):
        return _moved(path, home.path, place)
    if path.startswith(("/", "~")) or "\\" in path or DRIVE.match(path) or ".." in PurePosixPath(path).parts:
        hint = "name the output folder on the command line"
        raise RecipeError(f"a recipe from elsewhere may not write to {path!r}", hint=hint)
    return path


def companion(reference: str, suffix: str) -> Path:
    """The file that goes with a recipe: beside it, with another ending; for a recipe from elsewhere in the working folder.

    Raises: RecipeError for a reference that names no file.
    """
    try:
        if git.is_git(reference):
            inside = git.parse_git_reference(reference).path
        elif addresses.is_address(reference):
            inside = addresses.shown(reference).partition("?")[0]
        else:
            named = None if _exists(Path(), reference) else _hub_file(reference)
            if named is None:
                path = as_path(reference)
                return path.with_name(f"{path.stem}{suffix}")
            inside = named.subfolder
        return Path(f"{PurePosixPath(inside).stem or 'recipe'}{suffix}")
    except (InputError, ValueError) as error:
        what = error.what if isinstance(error, InputError) else "names no file"
        raise RecipeError(what, where=git.shown(reference)) from error


# --- the kinds of places -------------------------------------------------------------------------------------------------


def open_local(reference: str, home: Folder, limit: int) -> Opened:
    """Read a recipe's file here, as `open_text`.

    Raises: RecipeError when it is not there.
    """
    path = home.path / as_path(reference)
    label = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except IsADirectoryError as error:
        raise RecipeError("is a folder, not a recipe", where=label, hint="name the YAML file") from error
    except FileNotFoundError as error:
        raise RecipeError("no such file", where=label, hint="`rmkit init ADAPTER...` writes a recipe") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=label) from error
    return Opened(content, Folder(path.parent), label, reference, os.path.realpath(path), path.stem)


def _open_on_hub(named: HubReference, reference: str, commits: Mapping[str, str], limit: int) -> Opened:
    named = replace(named, revision=commits.get(reference, named.revision))
    repository = hub.open_repository(named, reference)
    opened = _open_inside(repository, named.subfolder, limit, reference)
    hub.remember_revision(named, reference)
    return opened


def _open_in_git(reference: str, home: Home, commits: Mapping[str, str], limit: int) -> Opened:
    named = git.parse_git_reference(reference)
    plain = git.shown(reference)
    _refuse_near(named.url, plain, home)
    if not named.path:
        raise InputError("names no file", where=plain, hint=f"add it: {plain}:recipes/x.yaml")
    named = replace(named, revision=commits.get(plain, named.revision))
    repository = git.open_repository(named, reference)
    if named.path not in repository.names():
        raise InputError(_no_file(repository, named.path), where=plain)
    return _open_inside(repository, named.path, limit, plain)


def _open_inside(
    repository: hub.HubRepository | git.GitRepository, path: str, limit: int, reference: str | None = None
) -> Opened:
    content = repository.read(path, limit)
    spelled = repository.spelled(path)
    pure = PurePosixPath(path)
    folder = "" if str(pure.parent) == "." else str(pure.parent)
    label = reference or spelled
    return Opened(content, InRepository(repository, folder), label, label, spelled, pure.stem, repository.commit)


def _open_on_web(url: str, home: Home, limit: int) -> Opened:
    from .web import fetch

    near = isinstance(home, OnWeb) and addresses.on_this_machine(home.url)
    if not isinstance(home, Folder) and addresses.on_this_machine(url) and not near:
        raise InputError("a recipe from elsewhere may not name this machine", where=addresses.shown(url))
    content = fetch(url, limit)
    plain = addresses.shown(url)
    return Opened(content, OnWeb(url), plain, plain, url, PurePosixPath(plain).stem)


# --- references ----------------------------------------------------------------------------------------------------------


def _exists(place: Path, reference: str) -> bool:
    try:
        return (place / as_path(reference)).exists()
    except (OSError, ValueError):
        return False


def _hub_file(reference: str) -> HubReference | None:
    """The parts of `org/name[@revision]:path`; None for a text of another form, which is meant as a path."""
    try:
        named = parse_hub_reference(reference)
    except InputError:
        if reference.startswith(_HUB_ONLY):
            raise
        return None
    if named.subfolder:
        return named
    if reference.startswith(_HUB_ONLY) or "@" in reference or reference.startswith("datasets/"):
        raise InputError("names no file", where=reference, hint=f"add it: {reference.rstrip(':')}:recipes/x.yaml")
    return None


def _path_from(reference: str, home: InRepository | OnWeb) -> str | None:
    """The path inside the repository that a relative reference means; None where the repository has no such thing.

    Raises: InputError for a path of this machine, and for one that leaves the repository.
    """
    if reference.startswith(("/", "~", "file:")) or "\\" in reference or DRIVE.match(reference):
        raise InputError("a recipe from elsewhere may not name files of this machine", where=reference)
    if isinstance(home, OnWeb) or reference.startswith(_HUB_ONLY) or not reference.strip():
        return None
    path = posixpath.normpath(posixpath.join(home.folder, reference))
    if path.startswith(".."):
        raise InputError("leads outside of its repository", where=reference)
    names = home.repository.names()
    for spelling in (path, path.replace(":", "/")):
        if spelling in names or any(name.startswith(f"{spelling}/") for name in names):
            return spelling
    return None


def _refuse_near(url: str, reference: str, home: Home) -> None:
    """A recipe from elsewhere may reach its own repository, and others by https alone."""
    own = isinstance(home, InRepository) and home.repository.address == url
    if not isinstance(home, Folder) and not own and not url.startswith("https://"):
        raise InputError("a recipe from elsewhere may name other repositories by git+https only", where=git.shown(reference))


def _no_file(repository: git.GitRepository, path: str) -> str:
    there = sorted(name for name in repository.names() if name.endswith((".yaml", ".yml")))
    listed = f"; recipes there may be {', '.join(there[:12])}" if there else ""
    return f"404: the repository has no file {path!r}{listed}"


def _moved(reference: str, home: Path, place: Path) -> str:
    """A path from `home` as a path from `place`; real folders are compared, since `..` leads out of where a link points to."""
    path = as_path(reference)
    if path.is_absolute():
        return reference
    way = os.path.relpath(home.resolve(), place.resolve())
    if way == ".":
        return reference
    moved = posixpath.join(way, reference.removeprefix("./"))
    return moved if moved.startswith(".") else f"./{moved}"


def _on_hub(reference: str, place: Path) -> str:
    """A Hub reference that cannot be taken for a path in `place`."""
    if reference.startswith(_HUB_ONLY) or git.is_git(reference):
        return reference
    return f"{_HUB_ONLY}{reference}" if is_local(reference, place) else reference


def same_place(home: Home, place: Path) -> bool:
    """Whether references from `home` and from the folder `place` mean the same."""
    try:
        return isinstance(home, Folder) and (home.path == place or home.path.samefile(place))
    except (OSError, ValueError):
        return False

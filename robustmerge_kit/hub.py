"""The Hub as a place for recipes and inputs: only the files asked for are fetched, into huggingface_hub's own cache.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE act through huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .base_folders import base_files
from .disclosure import UNPRINTABLE
from .errors import InputError, RmkitError
from .folders import choose_files

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

    from .sources import HubReference

T = TypeVar("T")

_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_adapter(parts: HubReference, reference: str) -> tuple[Path, Path | None, str]:
    """Bring one adapter's files into the cache: (folder, weights file if the reference named one, commit).

    A commit whose files are all in the cache needs no network; branches and tags are looked up unless offline.
    Raises: InputError for what the Hub refuses, what is not there, and what the cache lacks while offline.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _from_cache(parts, reference, offline=True)
    if parts.revision and _COMMIT.fullmatch(parts.revision):
        try:
            return _from_cache(parts, reference, offline=False)
        except InputError:
            pass  # not there, or only in part: ask the Hub
    return _from_hub(parts, reference)


def fetch_base(parts: HubReference, reference: str) -> tuple[Path, str]:
    """Bring a base model into the cache: (folder, commit). One form of the weights is fetched, shard by shard.

    Raises: InputError for what the Hub refuses, what is not there, and what the cache lacks while offline.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _base_from_cache(parts, reference)
    info = _information(parts, reference)
    commit = _commit_of(info, reference)
    prefix = f"{parts.subfolder}/" if parts.subfolder else ""
    names = _names_of(info)
    wanted = base_files([name.removeprefix(prefix) for name in names if name.startswith(prefix)])
    if not wanted:
        raise InputError(
            "holds no model weights in safetensors or .bin files", where=reference, hint="is this the base model's repository?"
        )
    paths = [_download(parts, prefix + name, commit, reference) for name in wanted]
    if parts.revision != commit:
        # downloads by commit leave no trace of the branch or tag; this one records it for offline use
        _download(parts, prefix + wanted[0], parts.revision, reference)
    return paths[0].parents[wanted[0].count("/")], commit


def _base_from_cache(parts: HubReference, reference: str) -> tuple[Path, str]:
    root = _snapshot(parts, reference, offline=True)
    folder = root / parts.subfolder
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not base_files(names):
        raise InputError(
            "the local cache holds no weights of it", where=reference, hint="unset HF_HUB_OFFLINE once to download it"
        )
    return folder, root.name


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit; `kind` is model or dataset."""

    name: str
    commit: str
    kind: str = "model"

    def spelled(self, path: str) -> str:
        """The reference to a file or folder of it."""
        return f"{self.address}@{self.commit}:{path}"

    @property
    def address(self) -> str:
        """What all references to it share, whatever their commit."""
        return f"hf://{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def names(self) -> frozenset[str]:
        """Its files; offline, those that are in the cache."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            root = _store(self.name, self.kind) / "snapshots" / self.commit
            return frozenset(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return _listing(self)

    def read(self, path: str, limit: int) -> bytes:
        """A file of at most `limit` bytes; what is in the cache is taken from there.

        Raises: InputError when it is larger, not there, or the Hub refuses.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        where = self.spelled(path)
        kept = _store(self.name, self.kind) / "snapshots" / self.commit / path
        if not kept.is_file():
            url = hf_hub_url(self.name, path, repo_type=self.kind, revision=self.commit)
            about_it = (self.name, self.commit, where)
            about = _ask(partial(get_hf_file_metadata, url), *about_it)
            if about.size is None or about.size > limit:
                raise InputError(f"is larger than {limit} bytes", where=where, hint="is this the right file?")
            kept = Path(_ask(partial(hf_hub_download, self.name, path, revision=self.commit, repo_type=self.kind), *about_it))
        with kept.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise InputError(f"is larger than {limit} bytes", where=where, hint="is this the right file?")
        return content


def open_repository(parts: HubReference, reference: str) -> HubRepository:
    """The repository at the commit its branch or tag stands for; offline, the commit that the cache remembers.

    Raises: InputError for what the Hub refuses and what the cache lacks while offline.
    """
    from huggingface_hub import constants

    if parts.revision and _COMMIT.fullmatch(parts.revision):
        return HubRepository(parts.repository, parts.revision, parts.kind)
    if constants.HF_HUB_OFFLINE:
        return HubRepository(parts.repository, _snapshot(parts, reference, offline=True).name, parts.kind)
    commit = _commit_of(_information(parts, reference), reference)
    return HubRepository(parts.repository, commit, parts.kind)


def remember_revision(parts: HubReference, reference: str) -> None:
    """Let the cache know which commit the branch or tag of a file's reference stands for, for offline use."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not (parts.revision and _COMMIT.fullmatch(parts.revision)):
        _download(parts, parts.subfolder, parts.revision, reference)


@cache
def _listing(repository: HubRepository) -> frozenset[str]:
    from huggingface_hub import HfApi

    def request() -> frozenset[str]:
        info = HfApi().repo_info(repository.name, revision=repository.commit, repo_type=repository.kind)
        return frozenset(_names_of(info))

    return _ask(request, repository.name, repository.commit, repository.spelled(""))


def _from_hub(parts: HubReference, reference: str) -> tuple[Path, Path | None, str]:
    info = _information(parts, reference)
    commit = _commit_of(info, reference)
    names = _names_of(info)
    wanted, child, file = choose_files(names, parts.subfolder, parts.repository, reference)

    # weights come last, so that weights in the cache mean that everything beside them is there too
    paths = [_download(parts, name, commit, reference) for name in wanted]
    if parts.revision != commit:
        # downloads by commit leave no trace of the branch or tag; this one records it for offline use
        _download(parts, wanted[0], parts.revision, reference)
    root = paths[-1].parents[wanted[-1].count("/")]
    return root / parts.subfolder / child if file is None else paths[-1].parent, paths[-1] if file else None, commit


def _information(parts: HubReference, reference: str) -> ModelInfo | DatasetInfo:
    from huggingface_hub import HfApi

    def request() -> ModelInfo | DatasetInfo:
        if parts.kind == "dataset":
            return HfApi().dataset_info(parts.repository, revision=parts.revision)
        return HfApi().model_info(parts.repository, revision=parts.revision)

    return _ask(request, parts.repository, parts.revision, reference)


def _commit_of(info: ModelInfo | DatasetInfo, reference: str) -> str:
    """The commit a server names; it becomes part of a path."""
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise InputError("the Hub names no commit for it", where=reference)
    return info.sha


def _names_of(info: object) -> list[str]:
    """The files a server lists, without those that no repository can hold: they become paths."""
    names: list[str] = [entry.rfilename for entry in getattr(info, "siblings", None) or ()]
    return [name for name in names if not UNPRINTABLE.search(name) and not {"", ".", ".."} & set(name.split("/"))]


def _download(parts: HubReference, name: str, revision: str | None, reference: str) -> Path:
    """One file by a commit, or by a branch or tag, which the cache then remembers."""
    from huggingface_hub import hf_hub_download

    def request() -> str:
        return hf_hub_download(parts.repository, name, revision=revision, repo_type=parts.kind)

    return Path(_ask(request, parts.repository, parts.revision, reference))


def _store(name: str, kind: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"


def _snapshot(parts: HubReference, reference: str, *, offline: bool) -> Path:
    """The folder of the commit in the cache; its name is the commit."""
    store = _store(parts.repository, parts.kind)
    revision = parts.revision or "main"
    mark = store / "refs" / revision
    commit = mark.read_text().strip() if ".." not in revision and mark.is_file() else revision
    root = store / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not root.is_dir():
        way_out = "unset HF_HUB_OFFLINE once to download it" if offline else ""
        raise InputError("is not in the local cache, and HF_HUB_OFFLINE forbids the network", where=reference, hint=way_out)
    return root


def _from_cache(parts: HubReference, reference: str, *, offline: bool) -> tuple[Path, Path | None, str]:
    root = _snapshot(parts, reference, offline=offline)
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    try:
        wanted, child, file = choose_files(names, parts.subfolder, parts.repository, reference)
        if child:
            raise InputError(f"only the sub-folder {child!r} is in the cache", where=reference)
    except InputError as error:
        way_out = "unset HF_HUB_OFFLINE once to download it" if offline else ""
        raise InputError(
            f"the local cache holds only a part of it ({error.what})", where=reference, hint=way_out or error.hint
        ) from error
    last = root / wanted[-1]
    return last.parent, last if file else None, root.name


def _ask(request: Callable[[], T], name: str, revision: str | None, reference: str) -> T:
    """Make one request; what the Hub answers becomes a sentence."""
    from huggingface_hub import errors

    def status(error: errors.HfHubHTTPError) -> int:
        return int(getattr(error.response, "status_code", 0))

    try:
        return request()
    except RmkitError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(
            f"{status(error)}: {name} is gated",
            where=reference,
            hint="ask for access on its page, then log in with `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"404: {name} has no revision {revision!r}",
            where=reference,
            hint="check the branch, tag or commit",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{status(error)}: no repository {name}, or it is private",
            where=reference,
            hint="check the name; for a private repository log in with `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"404: a file of {name} is missing ({_line(error)})", where=reference) from error
    except errors.HfHubHTTPError as error:
        denied = status(error) in (401, 403)
        raise InputError(
            f"{status(error)}: the Hub refuses {name}" + (", gated or private" if denied else f" ({_line(error)})"),
            where=reference,
            hint="log in with `hf auth login` or set HF_TOKEN" if denied else "try again later",
        ) from error
    except Exception as error:  # the HTTP library under huggingface_hub differs by version, and so do its errors
        raise InputError(
            f"the Hub cannot be asked ({type(error).__name__}: {_line(error)})",
            where=reference,
            hint="check the network; HF_HUB_OFFLINE=1 uses what is in the cache",
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]

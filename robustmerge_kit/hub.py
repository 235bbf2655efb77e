"""The Hub as a place for inputs: only the files of one adapter are fetched, into huggingface_hub's own cache.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE act through huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .errors import InputError, RmkitError
from .folders import CONFIG, find_adapter

if TYPE_CHECKING:
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


def _from_hub(parts: HubReference, reference: str) -> tuple[Path, Path | None, str]:
    from huggingface_hub import HfApi, hf_hub_download

    info = _ask(lambda: HfApi().model_info(parts.repository, revision=parts.revision), parts, reference)
    commit = info.sha
    if not commit:
        raise InputError("the Hub names no commit for it", where=reference)
    wanted, child, file = _choose([entry.rfilename for entry in info.siblings or ()], parts, reference)
    # weights come last, so that weights in the cache mean that everything beside them is there too
    paths = [
        Path(_ask(lambda name=name: hf_hub_download(parts.repository, name, revision=commit), parts, reference))
        for name in wanted
    ]
    if parts.revision != commit:
        # downloads by commit leave no trace of the branch or tag; this one records it for offline use
        _ask(lambda: hf_hub_download(parts.repository, wanted[0], revision=parts.revision), parts, reference)
    root = paths[-1].parents[wanted[-1].count("/")]
    return root / parts.subfolder / child if file is None else paths[-1].parent, paths[-1] if file else None, commit


def _from_cache(parts: HubReference, reference: str, *, offline: bool) -> tuple[Path, Path | None, str]:
    from huggingface_hub import constants

    store = Path(constants.HF_HUB_CACHE) / f"models--{parts.repository.replace('/', '--')}"
    revision = parts.revision or "main"
    mark = store / "refs" / revision
    commit = mark.read_text().strip() if ".." not in revision and mark.is_file() else revision
    root = store / "snapshots" / commit
    way_out = "unset HF_HUB_OFFLINE once to download it" if offline else ""
    if not _COMMIT.fullmatch(commit) or not root.is_dir():
        raise InputError("is not in the local cache, and HF_HUB_OFFLINE forbids the network", where=reference, hint=way_out)
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    try:
        wanted, child, file = _choose(names, parts, reference)
        if child:
            raise InputError(f"only the sub-folder {child!r} is in the cache", where=reference)
    except InputError as error:
        raise InputError(
            f"the local cache holds only a part of it ({error.what})", where=reference, hint=way_out or error.hint
        ) from error
    last = root / wanted[-1]
    return last.parent, last if file else None, commit


def _choose(names: list[str], parts: HubReference, reference: str) -> tuple[list[str], str, str | None]:
    """Files to fetch (weights last), the sub-folder found below the one asked for, the file asked for."""
    subfolder = parts.subfolder
    if subfolder in names:
        parent = subfolder.rpartition("/")[0]
        config = f"{parent}/{CONFIG}" if parent else CONFIG
        return [*([config] if config in names else []), subfolder], "", subfolder
    prefix = f"{subfolder}/" if subfolder else ""
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not inside:
        there = sorted({name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG}")})
        listed = f"; adapters there: {', '.join(there[:12])}" if there else ""
        raise InputError(f"404: the repository has no subfolder {subfolder!r}{listed}", where=reference)
    _refuse_deep_adapters(inside, parts, reference)
    found = find_adapter(inside, reference)
    return [prefix + name for name in found.files], found.child, None


def _refuse_deep_adapters(inside: list[str], parts: HubReference, reference: str) -> None:
    """Say what is there when every adapter lies deeper than one sub-folder."""
    homes = sorted({name.rpartition("/")[0] for name in inside if name.rpartition("/")[2] == CONFIG})
    if homes and all("/" in home for home in homes):
        prefix = f"{parts.subfolder}/" if parts.subfolder else ""
        raise InputError(
            f"no adapter at the top, but in {', '.join(homes[:12])}",
            where=reference,
            hint=f"name one, e.g. {parts.repository}:{prefix}{homes[0]}",
        )


def _ask(request: Callable[[], T], parts: HubReference, reference: str) -> T:
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
            f"{status(error)}: {parts.repository} is gated",
            where=reference,
            hint="ask for access on its page, then log in with `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"404: {parts.repository} has no revision {parts.revision!r}",
            where=reference,
            hint="check the branch, tag or commit",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{status(error)}: no repository {parts.repository}, or it is private",
            where=reference,
            hint="check the name; for a private repository log in with `hf auth login` or set HF_TOKEN",
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"404: a file of {parts.repository} is missing ({_line(error)})", where=reference) from error
    except errors.HfHubHTTPError as error:
        denied = status(error) in (401, 403)
        raise InputError(
            f"{status(error)}: the Hub refuses {parts.repository}" + (", gated or private" if denied else f" ({_line(error)})"),
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

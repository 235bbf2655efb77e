"""An output folder of this program to a repository of the Hub, with its card; nothing else goes along."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .disclosure import find_secret, without_home, without_secrets
from .errors import InputError, OutputError, RmkitError, UsageError, raise_all
from .links import refuse_leading_out
from .recipe.front_matter import licence_in, licence_lines, licence_note, licences_of, parse_front_matter
from .recorded import RECEIPT, listed_files, read_receipt
from .sources import FileDigest, digest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

CARD = "README.md"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9_][\w.\-]{0,95}")
_PICTURE = re.compile(r"!\[[^\]]*\]\((?:\./)?(?P<name>[\w][\w./-]*\.(?:svg|png))\)")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class Destination:
    """Where to: a repository, a branch of it, None: its main one. A new repository is public unless `private`."""

    repository: str
    revision: str | None = None
    private: bool = False
    create_pr: bool = False


@dataclass(frozen=True)
class Parcel:
    """A folder that has been checked.

    files: those of the receipt. beside: names of the receipt and of pictures that the card shows, for which no receipt vouches.
    """

    folder: Path
    receipt: Mapping[str, Any]
    files: Mapping[str, FileDigest]
    beside: tuple[str, ...]
    card: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """What happened. `url` is None for a dry run, `commit` also where the repository held the same files already."""

    parcel: Parcel
    url: str | None = None
    commit: str | None = None
    pull_request: str | None = None
    notes: tuple[str, ...] = ()


def pack(folder: Path) -> Parcel:
    """Check a folder against its receipt: every file is there, and is what the merge has written.

    Raises: InputError, all of them at once, for a folder without receipt or card, for files that are missing or were changed,
        and for access tokens in what would be published.
    """
    refuse_leading_out(folder, (RECEIPT, CARD, "rmkit_recipe.yaml"), folder, "put the file itself in its place")
    receipt = read_receipt(folder)
    listed = listed_files(folder, receipt)
    files = digest(folder / name for name in listed if (folder / name).is_file())
    raise_all(_differences(folder, listed, files))
    if not (folder / CARD).is_file():
        raise InputError(f"has no card ({CARD})", where=str(folder), hint="run again without --no-write-model-card")
    card = _text(folder / CARD)
    beside = (RECEIPT, *_pictures(folder, card))
    ours = [name for name in (*beside, "rmkit_recipe.yaml") if (folder / name).is_file()]
    texts = {CARD: card} | {name: _text(folder / name) for name in ours}
    raise_all(
        InputError("holds what looks like an access token", where=f"{folder / name}", hint="take it out, and revoke the token")
        for name, text in texts.items()
        if find_secret(text)
    )
    known = {*listed, CARD, *beside}
    others = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    left = [name for name in others if name not in known]
    notes = [f"{name} names the home folder of whoever runs this" for name, text in texts.items() if without_home(text) != text]
    notes += [f"{len(left)} files are not of the merge and stay here: {', '.join(left[:5])}"] if left else []
    notes += _gaps(card)
    return Parcel(folder, receipt, {name: files[folder / name] for name in listed}, beside, card, tuple(notes))


def publish(
    folder: Path,
    destination: Destination,
    *,
    message: str | None = None,
    dry_run: bool = False,
    planned: Callable[[Parcel], None] = lambda parcel: None,
) -> Published:
    """Upload a finished output folder in one commit: the files of the receipt, the receipt, the card.

    With `dry_run` everything is checked that needs no network. `planned` is called before the first request.

    Raises: UsageError, InputError before anything is sent; OutputError for what the Hub refuses.
    """
    _check(destination)
    parcel = pack(folder)
    planned(parcel)
    if dry_run:
        return Published(parcel)
    api = _log_in()
    notes = _prepare(api, destination, parcel)
    card = _complete_card(api, parcel)
    return _commit(api, destination, parcel, card, message or _message(parcel.receipt), notes)


# --- the folder ---------------------------------------------------------------------------------------------------------


def _differences(folder: Path, listed: Mapping[str, FileDigest], files: Mapping[Path, FileDigest]) -> Iterator[RmkitError]:
    for name, wanted in listed.items():
        found = files.get(folder / name)
        if found is None:
            yield InputError("is missing, though the receipt names it", where=str(folder / name), hint="run the merge again")
        elif found != wanted:
            yield InputError(
                f"is not what was written: {found.size} bytes, sha256 {found.sha256[:12]}.., "
                f"the receipt says {wanted.size}, {wanted.sha256[:12]}..",
                where=str(folder / name),
                hint="it was changed or damaged; run the merge again",
            )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _pictures(folder: Path, card: str) -> list[str]:
    names = dict.fromkeys(match["name"] for match in _PICTURE.finditer(card))
    return [name for name in names if ".." not in name and (folder / name).is_file() and not (folder / name).is_symlink()]


def _gaps(card: str) -> list[str]:
    found = parse_front_matter(card)
    if not found:
        return ["the card has no front matter, so the Hub does not know what this is"]
    return [] if found.get("base_model") else ["the card names no base_model; the inputs do not say which repository it is"]


# --- the Hub ------------------------------------------------------------------------------------------------------------


def _check(destination: Destination) -> None:
    from huggingface_hub import constants

    name = destination.repository
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise UsageError(f"{name!r} is not a repository's name", hint="write it as org/name")
    if destination.create_pr and destination.revision not in (None, "main"):
        raise UsageError(
            f"--create-pr --revision {destination.revision}: pull requests start from main", hint="leave --revision out"
        )
    if constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE is set, and uploading needs the network", hint="unset HF_HUB_OFFLINE")


def _log_in() -> HfApi:
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise UsageError("no token: uploading needs one that may write", hint="log in with `hf auth login`, or set HF_TOKEN")
    return HfApi(token=token, library_name="rmkit")


def _prepare(api: HfApi, destination: Destination, parcel: Parcel) -> list[str]:
    """The repository and its branch, made where they are missing; remarks on what is in it.

    Raises: OutputError when the Hub refuses, and for a public repository where a private one is asked for.
    """
    name = destination.repository
    if not destination.create_pr:
        _ask(lambda: api.create_repo(name, private=True if destination.private else None, exist_ok=True), name)
    info = _ask(lambda: api.model_info(name), name)
    if destination.private and not info.private:
        raise OutputError(
            "is public, and --private was given", where=name, hint="make it private on its page, or leave --private out"
        )
    if destination.revision not in (None, "main"):
        _ask(lambda: api.create_branch(name, branch=str(destination.revision), exist_ok=True), name)
    there = [entry.rfilename for entry in info.siblings or ()]
    stale = [each for each in there if each.endswith(_WEIGHTS) and each not in parcel.files]
    return [f"{name} also holds {', '.join(stale[:5])}, which loaders may take instead"] if stale else []


def _complete_card(api: HfApi, parcel: Parcel) -> str:
    """The card, with the licence of inputs from the Hub where it states none."""
    if "license" in parse_front_matter(parcel.card) or not parcel.card.startswith("---\n"):
        return parcel.card
    licences = licences_of(parcel.receipt)
    for item in parcel.receipt["inputs"]:
        if item.get("repository") and not licences[item["name"]]:
            licences[item["name"]] = _licence_on_hub(api, item["repository"], item.get("revision"))
    lines = "".join(f"{line}\n" for line in licence_lines(licences))
    card = parcel.card.replace("\n---\n", f"\n{lines}---\n", 1)
    note = licence_note(licences)
    return f"{card.rstrip()}\n\n{note}\n" if note and "## Licences" not in card else card


def _licence_on_hub(api: HfApi, repository: str, revision: str | None) -> str | None:
    try:
        data = api.model_info(repository, revision=revision).card_data
    except Exception:  # a repository that is gone or closed states no licence
        return None
    return licence_in(data.to_dict()) if data else None


def _commit(api: HfApi, destination: Destination, parcel: Parcel, card: str, message: str, notes: list[str]) -> Published:
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(name, str(parcel.folder / name)) for name in (*parcel.files, *parcel.beside)]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    done = _ask(
        lambda: api.create_commit(
            destination.repository,
            operations,
            commit_message=message,
            revision=destination.revision,
            create_pr=destination.create_pr,
        ),
        destination.repository,
    )
    url = str(api.endpoint).rstrip("/") + f"/{destination.repository}"
    if destination.revision and not destination.create_pr:
        url += f"/tree/{destination.revision}"
    return Published(parcel, url, done.oid or None, done.pr_url, tuple(notes))


def _message(receipt: Mapping[str, Any]) -> str:
    version = receipt.get("rmkit", "")
    if "conversion" in receipt:
        return f"Adapter converted by rmkit {version}"
    method = receipt.get("settings", {}).get("merge_method", "a merge")
    return f"{method} of {len(receipt['inputs'])} adapters by rmkit {version}"


def _ask(request: Callable[[], T], repository: str) -> T:
    """Make requests; what the Hub answers becomes a sentence."""
    from huggingface_hub import errors

    try:
        return request()
    except Exception as error:  # the HTTP library under huggingface_hub differs by version, and so do its errors
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, errors.HfHubHTTPError):
            cause = cause.__cause__
        if cause is not None:
            status = int(getattr(cause.response, "status_code", 0))
            what, hint = _REFUSALS.get(status, (f"the Hub answers {_line(cause)}", "try again later"))
            raise OutputError(f"{status}: {what}", where=repository, hint=hint) from error
        if isinstance(error, ValueError):
            raise OutputError(f"the Hub refuses it: {_line(error)}", where=repository) from error
        raise OutputError(
            f"the Hub cannot be reached ({type(error).__name__}: {_line(error)})",
            where=repository,
            hint="check the network, then run the same command again: what is uploaded already is not sent twice",
        ) from error


_REFUSALS = {
    401: ("the Hub does not accept the token", "log in again with `hf auth login`, or set HF_TOKEN"),
    403: ("the token may not write there", "use a token with write access, or --create-pr"),
    404: ("no such repository, or it is closed to this token", "check the name; --create-pr needs a repository that exists"),
    409: ("somebody else is changing the repository", "run the same command again"),
    413: ("a file is too large for the Hub", "make it smaller, e.g. with output.rank or --out-shard-size"),
}


def _line(error: BaseException) -> str:
    return without_secrets((str(error).strip().splitlines() or [""])[0])[:200]

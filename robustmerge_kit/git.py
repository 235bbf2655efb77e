"""Git repositories as a place for recipes and adapters: `git+https://host/name.git[@revision][:path]`.

Objects are fetched into bare repositories in rmkit's cache and read from there. Nothing is checked out, so that no hook, filter
or submodule of a repository ever runs and no link inside it is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from .errors import InputError
from .folders import choose_files, inside
from .links import as_path

PREFIX = "git+"
TIMEOUT = 600.0
"""Seconds one command of git may take."""

_FORM = re.compile(
    r"git\+(?P<scheme>https|http|ssh|file)://((?P<user>[^/@]*)@)?(?P<host>[A-Za-z0-9][\w.\-]*(:\d+)?)?(?P<path>/[^@:\s]+)"
    r"(@(?P<revision>[^\s:@]+))?(:(?P<inside>.*))?",
    re.ASCII,
)
_REVISION = re.compile(r"[A-Za-z0-9_](?!.*(\.\.|@\{|//))[\w./\-+#]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_MARK = "refs/rmkit"
"""Where the cache's own names of the commits lie that it has with all their folders."""
_KEPT = ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM")
"""Variables of git's that a user sets for every repository; the others belong to the one that happens to call rmkit."""
_SAFE = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "fetch.recurseSubmodules": "false",
    "fetch.fsckObjects": "true",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    "credential.interactive": "false",
}


@dataclass(frozen=True)
class GitReference:
    """The parts of a reference. `secret` is what stood before an @ in a https address; it is shown and stored nowhere."""

    url: str
    revision: str | None = None
    path: str = ""
    secret: str | None = field(default=None, repr=False, compare=False)


def is_git(reference: str) -> bool:
    """Whether a reference is one to a git repository."""
    return reference.startswith(PREFIX)


def shown(reference: str) -> str:
    """The reference without user and password."""
    return re.sub(r"^(git\+\w+://)[^/]*@", r"\1", reference)


def parse_git_reference(reference: str) -> GitReference:
    """Split `git+https://host/name.git[@revision][:path]`; ssh:// and file:// too, http:// on this machine.

    Raises: InputError for any other form, and for a path that leads outside.
    """
    match = _FORM.fullmatch(reference)
    hint = "write git+https://host/name.git@revision:path"
    if match is None:
        raise InputError("is not a reference to a git repository", where=shown(reference), hint=hint)
    scheme, user, host, path = match["scheme"], match["user"], match["host"] or "", match["path"]
    if bool(host) == (scheme == "file"):
        raise InputError("needs a host, but file:// needs none", where=shown(reference), hint=hint)
    if scheme == "http" and host.partition(":")[0] not in ("127.0.0.1", "localhost"):
        raise InputError("only https is fetched, got http", where=shown(reference), hint="use git+https://")
    revision = match["revision"]
    if revision is not None and not _REVISION.fullmatch(revision):
        raise InputError(f"{revision!r} is not a branch, tag or commit", where=shown(reference))
    if scheme == "ssh":
        if user is not None and not re.fullmatch(r"[\w.\-]+", user):
            raise InputError("only a user's name may stand before the host", where=shown(reference), hint="use a key of ssh")
        host = f"{user}@{host}" if user else host
    url = f"{scheme}://{host}{path}"
    return GitReference(url, revision, inside(match["inside"] or "", shown(reference)), user if scheme != "ssh" else None)


@dataclass(frozen=True)
class GitRepository:
    """A repository at one commit, in the cache."""

    url: str
    commit: str
    store: Path
    secret: str | None = field(default=None, repr=False, compare=False)

    def spelled(self, path: str) -> str:
        """The reference to a file or folder of it."""
        return f"{PREFIX}{self.url}@{self.commit}:{path}"

    @property
    def address(self) -> str:
        """What all references to it share, whatever their commit."""
        return self.url

    @cached_property
    def _objects(self) -> dict[str, str]:
        listing = _git(self, "ls-tree", "-r", "-z", "--full-tree", self.commit).decode("utf-8", "surrogateescape")
        found: dict[str, str] = {}
        for line in filter(None, listing.split("\0")):
            about, _, name = line.partition("\t")
            mode, kind, object_id = about.split()
            if kind == "blob" and mode in ("100644", "100755") and name == inside(name, self.spelled(name)):
                found[name] = object_id
        return found

    def names(self) -> frozenset[str]:
        """Its files; links and submodules are none."""
        return frozenset(self._objects)

    def read(self, path: str, limit: int) -> bytes:
        """A file of at most `limit` bytes.

        Raises: InputError when it is larger.
        """
        if int(_git(self, "cat-file", "-s", self._objects[path])) > limit:
            raise InputError(f"is larger than {limit} bytes", where=self.spelled(path), hint="is this the right file?")
        return _git(self, "cat-file", "blob", self._objects[path])

    def extract(self, names: Sequence[str]) -> Path:
        """Put files into the cache as a folder, once; the top of the folder."""
        root = self.store / "files" / self.commit
        for name in names:
            target = root / name
            if target.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = target.with_name(f".{hashlib.sha256(target.name.encode()).hexdigest()[:16]}.{os.getpid()}")
            try:
                with scratch.open("xb") as file:
                    _git(self, "cat-file", "blob", self._objects[name], into=file.fileno())
                scratch.replace(target)
            finally:
                scratch.unlink(missing_ok=True)
        return root


_OPEN: dict[tuple[str, str], GitRepository] = {}
"""Repositories of this process: references inside them carry no secret, and need none."""


def open_repository(parts: GitReference, reference: str) -> GitRepository:
    """The repository at the revision (HEAD without one), fetched where the cache lacks it.

    Raises: InputError when git is missing, or refuses.
    """
    where = shown(reference)
    revision = parts.revision or "HEAD"
    known = _OPEN.get((parts.url, revision))
    if known is not None:
        return known
    if shutil.which("git") is None:
        raise InputError("needs the program git, which is not installed", where=where, hint="install git")
    store = cache() / "git" / hashlib.sha256(parts.url.encode()).hexdigest()[:32]
    probe = GitRepository(parts.url, revision, store, parts.secret)
    with _held(store):
        if not (store / _MARK).is_dir():
            _prepare(probe)
        known_commit = _COMMIT.fullmatch(revision) and (store / _MARK / revision).is_file()
        commit = revision if known_commit else _fetch(probe, revision)
    opened = GitRepository(parts.url, commit, store, parts.secret)
    _OPEN[parts.url, commit] = opened
    return opened


def fetch_adapter(parts: GitReference, reference: str) -> tuple[Path, Path | None, str]:
    """Bring one adapter's files out of a repository: (folder, weights file if the reference named one, commit).

    Raises: InputError for what git refuses and what is not there.
    """
    repository = open_repository(parts, reference)
    where = shown(reference)
    wanted, child, file = choose_files(list(repository.names()), parts.path, f"{PREFIX}{parts.url}", where)
    root = repository.extract(wanted)
    if file is not None:
        return (root / file).parent, root / file, repository.commit
    return root / parts.path / child, None, repository.commit


def cache() -> Path:
    """The cache folder of rmkit itself: RMKIT_CACHE, else `rmkit` in the user's cache."""
    own = os.environ.get("RMKIT_CACHE")
    return as_path(own) if own else as_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rmkit"


def _fetch(repository: GitRepository, revision: str) -> str:
    """Fetch a revision; its commit. A server that gives no commit by its id must give all branches."""
    quietly = ("--quiet", "--no-tags", "--no-recurse-submodules", "--filter=blob:none")
    try:
        _git(repository, "fetch", *quietly, "--depth=1", "--", "origin", revision)
        commit = _git(repository, "rev-parse", "--verify", "--quiet", "FETCH_HEAD^{commit}").decode().strip()
    except InputError:
        if not _COMMIT.fullmatch(revision):
            raise
        _git(repository, "fetch", *quietly, "--", "origin", "+refs/heads/*:refs/heads/*")
        _git(repository, "cat-file", "-e", f"{revision}^{{commit}}")
        commit = revision
    _git(repository, "update-ref", f"{_MARK}/{commit}", commit)
    return commit


def _prepare(repository: GitRepository) -> None:
    """An empty repository that fetches the content of a file when that file is read; doing it twice does no harm."""
    _git(repository, "init", "--quiet", "--bare", "--template=", str(repository.store))
    for key, value in (("url", repository.url), ("promisor", "true"), ("partialclonefilter", "blob:none")):
        _git(repository, "config", f"remote.origin.{key}", value)
    (repository.store / _MARK).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _held(store: Path) -> Generator[None]:
    """One process at a time fetches into a repository of the cache."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        lock = os.open(store.with_name(f"{store.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"the cache cannot be written: {error.strerror}", where=str(store), hint="set RMKIT_CACHE") from error
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _git(repository: GitRepository, *arguments: str, into: int | None = None) -> bytes:
    """Run git on the cache; what it prints, unless that goes into the open file `into`.

    Raises: InputError with git's own words.
    """
    try:
        done = subprocess.run(
            ["git", "--git-dir", str(repository.store), *arguments],
            env=_environment(repository),
            cwd=repository.store,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if into is None else into,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        what = f"git takes longer than {TIMEOUT:.0f} seconds"
        raise InputError(what, where=f"{PREFIX}{repository.url}", hint="check the network") from error
    except OSError as error:
        raise InputError(f"git cannot be run: {error.strerror}", where=f"{PREFIX}{repository.url}") from error
    if done.returncode != 0:
        raise InputError(
            f"git says: {_words(done.stderr)}",
            where=f"{PREFIX}{repository.url}",
            hint="check the address and the revision; for a private repository set up git's credentials",
        )
    return done.stdout or b""


def _environment(repository: GitRepository) -> dict[str, str]:
    """The user's environment without another repository's variables, with the settings that keep fetching harmless."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in _KEPT}
    scheme = repository.url.partition("://")[0]
    settings = {**_SAFE, f"protocol.{scheme}.allow": "always"}
    if repository.secret is not None:
        name, _, password = repository.secret.partition(":")
        pair = f"{unquote(name)}:{unquote(password)}".encode()
        settings[f"http.{repository.url}.extraHeader"] = f"Authorization: Basic {b64encode(pair).decode()}"
    for number, (key, value) in enumerate(settings.items()):
        kept[f"GIT_CONFIG_KEY_{number}"], kept[f"GIT_CONFIG_VALUE_{number}"] = key, value
    kept.setdefault("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
    return kept | {
        "GIT_CONFIG_COUNT": str(len(settings)),
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
        "GIT_LFS_SKIP_SMUDGE": "1",
    }


def _words(complaint: bytes) -> str:
    """The line of git's complaint that says most."""
    lines = [line for line in complaint.decode("utf-8", "replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines or ["nothing"]
    return re.sub(r"//[^/\s]*@", "//", told[0])[:200]

"""A Hub of a few repositories on 127.0.0.1, and a child process that resolves references against it."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from local_server import hub_environment, listening

MAIN, OLD = "a" * 40, "b" * 40


@dataclass
class Hub:
    """Files by repository (`datasets/` before the name of a data set), and the requests as (method, path, token)."""

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> list[str]:
        return sorted(
            path.split("/resolve/")[1].split("/", 1)[1]
            for verb, path, _ in self.requests
            if verb == "GET" and "resolve" in path
        )


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("authorization", "")))
            parts = path.strip("/").split("/")
            listing = parts[0] == "api"
            dataset = "datasets" in parts[:2]
            parts = [part for part in parts if part != "datasets"] if dataset else parts
            parts = ["api", "models", *parts[1:]] if dataset and listing else parts
            name = "datasets/" * dataset + "/".join(parts[2:4] if listing else parts[:2])
            if name in hub.broken:
                return self.reply(500, {}, b"")
            if name in hub.private or name not in hub.repositories:
                return self.reply(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"")
            if name in hub.gated:
                return self.reply(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"")
            files = hub.repositories[name]
            revision = (parts[5] if len(parts) > 5 else "main") if listing else parts[3]
            commit = {"main": MAIN, "v1": OLD, MAIN: MAIN, OLD: OLD}.get(revision)
            if commit is None:
                return self.reply(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"")
            if listing:
                siblings = [{"rfilename": file} for file in files]
                return self.reply(
                    200, {}, json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": siblings}).encode()
                )
            file = "/".join(parts[4:])
            if file not in files:
                return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"")
            content = files[file] + (b" " if commit == OLD and file.endswith("json") else b"")
            return self.reply(200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}, content)

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    with listening(_handler(hub)) as hub.url:
        yield hub


CHILD = """
import json, sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from robustmerge_kit.errors import RmkitError
from robustmerge_kit.sources import resolve
for reference in sys.argv[1:]:
    try:
        source = resolve(reference, Path.cwd())
        here = {p.relative_to(source.folder).as_posix() for p in source.folder.rglob("*") if p.is_file()}
        answer = dict(folder=str(source.folder), repository=source.repository, revision=source.revision, files=sorted(here),
                      file=source.file and source.file.name)
    except RmkitError as error:
        answer = dict(error=str(error), kind=type(error).__name__)
    print(json.dumps({**answer, "hub_client": "huggingface_hub" in sys.modules, "torch": "torch" in sys.modules}))
"""


def resolve_in_child(
    url: str, home: Path, references: list[str], cwd: Path | None = None, **environment: str
) -> list[dict[str, Any]]:
    """What `resolve` says in a fresh process whose environment names this Hub and this cache."""
    (cwd or home).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *references],
        env=hub_environment(url, home, HF_HUB_DISABLE_PROGRESS_BARS="1", **environment),
        cwd=cwd or home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]

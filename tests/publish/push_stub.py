"""A Hub on 127.0.0.1 that takes uploads: repositories, branches, large files, commits; and `rmkit push` in a child process."""

import base64
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
from urllib.parse import parse_qs, unquote, urlsplit

from command_line import Answer
from local_server import hub_environment, listening

TOKEN = "hf_" + "writesWritesWritesWrites"
READER = "hf_" + "readsOnlyReadsOnlyReads1"


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    licence: str | None = None
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """Repositories by name, large files by sha256, and the requests that came in."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    pull_requests: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failing: str = ""
    url: str = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers.get("content-length", 0))))

        def do_PUT(self) -> None:
            self.answer(self.rfile.read(int(self.headers.get("content-length", 0))))

        def answer(self, body: bytes) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.requests.append(f"{self.command} {path}")
            if hub.failing and hub.failing in path:
                return self.reply({"error": "out of order"}, 500)
            if path.startswith("/upload/"):
                oid = path.removeprefix("/upload/")
                assert hashlib.sha256(body).hexdigest() == oid
                hub.objects[oid] = body
                return self.reply({})
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            if token not in (TOKEN, READER):
                return self.reply({"error": "Invalid user token"}, 401)
            if self.command == "POST" and token == READER and not path.startswith("/api/validate"):
                return self.reply({"error": "You don't have the rights"}, 403)
            return self.reply(*self.take(path, parse_qs(url.query), body))

        def take(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[dict[str, Any], int]:
            parts = path.strip("/").split("/")
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name in hub.repositories:
                    return {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409
                private = asked.get("private") is True or asked.get("visibility") == "private"
                hub.repositories[name] = Repository(private)
                return {"url": f"{hub.url}/{name}", "id": name}, 200
            if path == "/api/validate-yaml":
                return {"warnings": [], "errors": []}, 200
            if path.endswith(".git/info/lfs/objects/batch"):
                return {"transfer": "basic", "objects": [self.large(each) for each in json.loads(body)["objects"]]}, 200
            if path.startswith("/verify"):
                return {}, 200
            name = "/".join(parts[2:4])
            if parts[:2] != ["api", "models"] or name not in hub.repositories:
                return {"error": "Repository not found"}, 404
            return self.on_repository(name, hub.repositories[name], parts[4:], query, body)

        def on_repository(
            self, name: str, repository: Repository, parts: list[str], query: dict[str, list[str]], body: bytes
        ) -> tuple[dict[str, Any], int]:
            if not parts or parts[0] == "revision":
                files = repository.branches["main"]
                siblings = [{"rfilename": file} for file in files]
                card = {"license": repository.licence} if repository.licence else {}
                info = {"id": name, "modelId": name, "sha": "a" * 40, "private": repository.private}
                return {**info, "siblings": siblings, "cardData": card}, 200
            if parts[0] == "branch":
                if parts[1] in repository.branches:
                    return {"error": "Reference already exists"}, 409
                repository.branches[parts[1]] = {}
                return {}, 200
            if parts[0] == "preupload":
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                return {"files": modes}, 200
            assert parts[0] == "commit"
            return self.commit(name, repository, parts[1], bool(query.get("create_pr")), body)

        def commit(
            self, name: str, repository: Repository, branch: str, as_pr: bool, body: bytes
        ) -> tuple[dict[str, Any], int]:
            lines = [json.loads(line) for line in body.splitlines()]
            files: dict[str, bytes] = {}
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            if as_pr:
                hub.pull_requests.append((name, files))
            else:
                repository.branches[branch].update(files)
            repository.commits.append(lines[0]["value"]["summary"])
            commit = hashlib.sha1(body).hexdigest()
            answer = {"commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit}
            return answer | {"pullRequestUrl": f"{hub.url}/{name}/discussions/1" if as_pr else None}, 200

        def large(self, asked: dict[str, Any]) -> dict[str, Any]:
            if asked["oid"] in hub.objects:
                return asked
            upload = {"href": f"{hub.url}/upload/{asked['oid']}", "header": {}}
            return {**asked, "actions": {"upload": upload}}

        def reply(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    with listening(_handler(hub)) as hub.url:
        yield hub


def push(hub: Hub, home: Path, *arguments: str, token: str | None = TOKEN, **environment: str) -> Answer:
    """What `rmkit push` says in a process whose environment names this Hub."""
    env = hub_environment(hub.url, home / "hf", **environment)
    if token is not None:
        env["HF_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-m", "robustmerge_kit", "push", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)

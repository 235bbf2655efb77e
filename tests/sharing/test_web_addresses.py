"""Recipes behind web addresses, from a server on 127.0.0.1: what is taken, what is refused, what is told."""

import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from local_server import listening
from small_adapters import write_adapter

from robustmerge_kit import web
from robustmerge_kit.addresses import join, shown
from robustmerge_kit.errors import InputError, RecipeError, RmkitError
from robustmerge_kit.merge import merge
from robustmerge_kit.recipe import load_recipe

Answers = dict[str, tuple[int, dict[str, str], bytes]]

HUB_RECIPE = b"merge_method: linear\nadapters: [org/a, org/b]\noutput: {path: merged}\n"


@pytest.fixture
def answers() -> Answers:
    return {"/r.yaml": (200, {}, HUB_RECIPE)}


@pytest.fixture
def requests() -> list[tuple[str, str]]:
    """Path and Authorization of every request."""
    return []


@pytest.fixture
def server(answers: Answers, requests: list[tuple[str, str]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            requests.append((self.path, self.headers.get("Authorization", "")))
            status, headers, body = answers.get(self.path, (404, {}, b"nothing"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with listening(Handler) as address:
        yield address


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RmkitError) as caught:
        call()
    assert "s3cret" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_and_what_it_extends(server: str, answers: Answers) -> None:
    answers["/recipes/child.yaml"] = (200, {}, b"extends: ../r.yaml\nseed: 3\n")
    recipe = load_recipe(f"{server}/recipes/child.yaml")
    assert [entry.adapter for entry in recipe.adapters] == ["org/a", "org/b"]
    assert (recipe.seed, recipe.title, recipe.place) == (3, "child", Path())
    assert [file.reference for file in recipe.origin.files] == [f"{server}/recipes/child.yaml", f"{server}/r.yaml"]
    assert recipe.text.startswith("# The recipe as it was run")


def test_a_recipe_here_may_extend_one_there(server: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    (tmp_path / "mine.yaml").write_text(f"extends: {server}/r.yaml\nadapters: [a]\n")
    receipt = merge(load_recipe(tmp_path / "mine.yaml"), tmp_path / "out")
    assert [file["reference"] for file in receipt.content["recipe"]["files"]] == ["mine.yaml", f"{server}/r.yaml"]
    assert load_recipe(tmp_path / "mine.yaml").output.path == "merged"


TEXTS = {
    b"merge_method: linear\nadapters: [./a]\n": "./a: a web address has no folders beside it",
    b"merge_method: linear\nadapters: [a/b/c]\n": "a/b/c: a web address has no folders beside it",
    b"merge_method: linear\nadapters: [/etc/a]\n": "may not name files of this machine",
    b"merge_method: linear\nadapters: [org/a]\noutput: {path: /o}\n": "may not write to '/o'",
    b"merge_metod: linear\nadapters: [org/a]\n": "x.yaml:1:1: unknown key 'merge_metod'",
    b"extends: /r.yaml\n": "may not name files of this machine",
    b"extends: //127.0.0.2/r.yaml\n": "may not name files of this machine",
    b"extends: ../../none.yaml\n": "404: the server refuses",
    b"extends: http://example.org/r.yaml\n": "only https is followed, got http",
    b"extends: ftp://example.org/r.yaml\n": "leads away from http://127.0.0.1",
    b"extends: file:///etc/passwd\n": "may not name files of this machine",
    b"!!python/object/apply:os.system [id]\n": "YAML tags are not read",
    b"  <!DOCTYPE html><html></html>": "is a web page, not a recipe",
    b"#" * 1_000_001: "is larger than 1000000 bytes",
    b"\xff\xfe": "is not UTF-8",
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_is_refused(text: bytes, server: str, answers: Answers) -> None:
    answers["/x.yaml"] = (200, {}, text)
    assert TEXTS[text] in refusal(lambda: load_recipe(f"{server}/x.yaml"))


def test_redirects_go_to_https_only_and_end(server: str, answers: Answers) -> None:
    for name, target in (
        ("/http", "http://example.org/r.yaml"),
        ("/file", "file:///etc/passwd"),
        ("/data", "data:text/plain,merge_method: linear"),
        ("/round", f"{server}/round"),
    ):
        answers[name] = (302, {"Location": target}, b"")
    assert "only https is followed (from" in refusal(lambda: web.fetch(f"{server}/http", 100))
    for name in ("/file", "/data", "/round"):
        assert "302: the server refuses" in refusal(lambda name=name: web.fetch(server + name, 100))
    answers["/good"] = (302, {"Location": f"{server}/r.yaml"}, b"")
    assert web.fetch(f"{server}/good", 1000) == HUB_RECIPE


def test_from_the_outside_nobody_is_led_to_this_machine(server: str, answers: Answers) -> None:
    with pytest.raises(InputError, match=r"only https is followed \(from https://example.org/\), got http"):
        web._checked(f"{server}/r.yaml", "https://example.org/")


def test_credentials_stay_with_their_host_and_out_of_messages(
    server: str, answers: Answers, requests: list[tuple[str, str]]
) -> None:
    port = server.rpartition(":")[2]
    answers["/away"] = (302, {"Location": f"http://localhost:{port}/r.yaml"}, b"")
    answers["/near"] = (302, {"Location": "/r.yaml"}, b"")
    web.fetch(f"http://me:s3cret@127.0.0.1:{port}/near", 1000)
    web.fetch(f"http://me:s3cret@127.0.0.1:{port}/away", 1000)
    given = [authorization for _, authorization in requests]
    assert given == ["Basic bWU6czNjcmV0", "Basic bWU6czNjcmV0", "Basic bWU6czNjcmV0", ""]
    message = refusal(lambda: load_recipe(f"http://me:s3cret@127.0.0.1:{port}/none.yaml?token=s3cret#s3cret"))
    assert f"http://127.0.0.1:{port}/none.yaml?***: 404" in message
    answers["/r.yaml?token=s3cret"] = answers["/r.yaml"]
    recipe = load_recipe(f"http://me:s3cret@127.0.0.1:{port}/r.yaml?token=s3cret")
    assert "s3cret" not in repr(recipe.origin)


def test_packed_content_is_refused(server: str, answers: Answers) -> None:
    answers["/z"] = (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")
    assert "the server sends it packed (gzip)" in refusal(lambda: web.fetch(f"{server}/z", 100))


def test_a_server_that_is_silent_or_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"#")
                    self.wfile.flush()
                    time.sleep(0.05 if self.path == "/drop" else 5)
            except OSError:
                pass

    monkeypatch.setattr(web, "SILENCE", 0.5)
    monkeypatch.setattr(web, "DEADLINE", 0.3)
    with listening(Slow) as address:
        started = time.monotonic()
        for path, message in (("/drop", "is not there after"), ("/silent", "cannot be fetched (TimeoutError")):
            assert message in refusal(lambda path=path: web.fetch(f"{address}{path}", 1000))
        assert time.monotonic() - started < 5


ADDRESSES = {
    "http://example.org/r.yaml": "only https is followed, got http",
    "HTTP://example.org/r.yaml": "only https is followed, got http",
    "https:///r.yaml": "is not a web address",
    "https://host:port/r.yaml": "is not a web address",
    "https://[::1/r.yaml": "is not a web address",
    "https://host/a b": "is not a web address",
    "https://host/a\nb": "is not a web address",
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_addresses_that_are_not_asked_for(url: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(url)
    assert ADDRESSES[url] in str(caught.value)


def test_nobody_there() -> None:
    with pytest.raises(RecipeError, match="cannot be fetched"):
        load_recipe("http://127.0.0.1:9/r.yaml")


SHOWN = {
    "https://host/r.yaml": "https://host/r.yaml",
    "https://me:pw@host:8/r.yaml?a=b#c": "https://host:8/r.yaml?***",
    "https://me@[::1": "[::1",
}


@pytest.mark.parametrize("url", SHOWN)
def test_what_is_shown(url: str) -> None:
    assert shown(url) == SHOWN[url]


def test_join_keeps_the_server() -> None:
    assert join("https://host/a/b.yaml", "../c.yaml") == "https://host/c.yaml"
    assert join("https://host/a/b.yaml", "../../../c.yaml") == "https://host/c.yaml"
    with pytest.raises(InputError, match="leads away"):
        join("https://host/a/b.yaml", "//other/c.yaml")

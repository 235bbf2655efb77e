"""A small text file from a web address: https only, within bounds of size, time and redirects."""

from __future__ import annotations

import base64
import http.client
import time
import urllib.error
import urllib.request
from typing import IO
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from .addresses import on_this_machine, shown
from .errors import InputError

MAX_REDIRECTS = 5
SILENCE = 20.0
"""Seconds without a byte after which a server is given up."""
DEADLINE = 60.0
"""Seconds after which a file must be there."""


def fetch(url: str, limit: int) -> bytes:
    """The content behind an address, at most `limit` bytes. Credentials in the address stay with its host.

    Raises: InputError for another scheme, a redirect away from https, what the server refuses, and what is too large or slow.
    """
    plain = _checked(url, url)
    local = on_this_machine(url)
    request = urllib.request.Request(urlunsplit(plain._replace(netloc=plain.netloc.rpartition("@")[2], fragment="")))
    request.add_header("User-Agent", "rmkit")
    request.add_header("Accept-Encoding", "identity")
    if plain.username is not None:
        pair = f"{unquote(plain.username)}:{unquote(plain.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    try:
        with _opener(url, local).open(request, timeout=SILENCE) as answer:
            return _read(answer, url, limit)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        hint = "check the address" if error.code in (404, 410) else "check the address, and that it needs no login"
        said = http.client.responses.get(error.code, "no reason")
        raise InputError(f"{error.code}: the server refuses ({said})", where=shown(url), hint=hint) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        what = f"cannot be fetched ({type(reason).__name__}: {_line(str(reason))})"
        raise InputError(what, where=shown(url), hint="check the address and the network") from error


def _checked(url: str, first: str) -> SplitResult:
    """The parts of an address that may be asked for, on the way from the address `first`."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"is not a web address ({error})", where=shown(url)) from error
    if not host or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise InputError("is not a web address", where=shown(url), hint="write https://host/path/recipe.yaml")
    local = parts.scheme == "http" and on_this_machine(url) and on_this_machine(first)
    if parts.scheme != "https" and not local:
        way = "" if url == first else f" (from {shown(first)})"
        raise InputError(f"only https is followed{way}, got {parts.scheme}", where=shown(url), hint="use an https:// address")
    return parts


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows few redirects, to https only; credentials stay with the host they were given for."""

    max_redirections = MAX_REDIRECTS
    max_repeats = MAX_REDIRECTS

    def __init__(self, first: str) -> None:
        self.first = first

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        try:
            parts = _checked(newurl, self.first)
        except InputError:
            fp.close()
            raise
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and parts.netloc != urlsplit(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


def _opener(first: str, local: bool) -> urllib.request.OpenerDirector:
    """Only what http and https need: no files, no ftp, no data addresses."""
    opener = urllib.request.OpenerDirector()
    handlers = (
        urllib.request.ProxyHandler({} if local else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(first),
    )
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _read(answer: http.client.HTTPResponse, url: str, limit: int) -> bytes:
    started = time.monotonic()
    coding = answer.headers.get("Content-Encoding", "identity")
    if coding != "identity":
        raise InputError(f"the server sends it packed ({coding})", where=shown(url), hint="use the address of the plain file")
    content = bytearray()
    while piece := answer.read1(65536):
        content += piece
        if len(content) > limit:
            raise InputError(f"is larger than {limit} bytes", where=shown(url), hint="is this a recipe?")
        if time.monotonic() - started > DEADLINE:
            raise InputError(f"is not there after {DEADLINE:.0f} seconds", where=shown(url), hint="try again later")
    if content.lstrip().startswith(b"<"):
        hint = "a page that shows a file is not the file; use the address of the raw file"
        raise InputError("is a web page, not a recipe", where=shown(url), hint=hint)
    return bytes(content)


def _line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:200]

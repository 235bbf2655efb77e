"""Web addresses as text: what may be shown of them, and what is relative to them."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit, urlunsplit

from .errors import InputError

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def is_address(reference: str) -> bool:
    """Whether a reference is a web address, which only this module judges further."""
    return reference.lower().startswith(("https://", "http://"))


def shown(url: str) -> str:
    """The address without what may be secret: user, password, values of the query, fragment."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "***" if parts.query else "", ""))
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]


def on_this_machine(url: str) -> bool:
    """Whether an address names this machine, where http is as good as https."""
    try:
        return urlsplit(url).hostname in _THIS_MACHINE
    except ValueError:
        return False


def join(url: str, reference: str) -> str:
    """The address that `reference` means in a file at `url`.

    Raises: InputError when it leads to another server.
    """
    joined = urljoin(url, reference)
    if urlsplit(joined)[:2] != urlsplit(url)[:2]:
        raise InputError(f"leads away from {shown(url)}", where=reference, hint="write the whole address")
    return joined

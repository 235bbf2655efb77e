"""What of a stranger's text, and of this machine, may be shown, logged and published."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing, that change the order of what is shown, or that are no characters."""

_LONGEST = 4000
_ODD = re.compile(rf"{UNPRINTABLE.pattern}|[^\S ]")
_BLANKS = re.compile(r"[ \t\r\n]*[\t\r\n][ \t\r\n]*")
_SECRETS = (
    (("hf_", "api_org_"), re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")),
    (("gh", "glpat-"), re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,})")),
    (("http",), re.compile(r"(?<=https://)[^/\s@'\"<>]+(?=@)|(?<=http://)[^/\s@'\"<>]+(?=@)")),
    (("://",), re.compile(r"(?<=://)[^/\s:@'\"<>]*:[^/\s@'\"<>]+(?=@)")),
    (("token=",), re.compile(r"(?<=[?&]token=)[^&\s'\"<>]+|(?<=[?&]access_token=)[^&\s'\"<>]+")),
    (("X-Amz-",), re.compile(r"(?<=[?&]X-Amz-Signature=)[^&\s'\"<>]+")),
)
"""Marks, one of which a text with such a secret holds, and the secret."""


def printable(text: str) -> str:
    """The text on one line, control characters and unusual blanks written out: a terminal shows it and does nothing else."""
    if _ODD.search(text) is None:
        return text
    return _ODD.sub(lambda found: repr(found[0])[1:-1], _BLANKS.sub(" ", text).strip())


def find_secret(text: str) -> tuple[int, int] | None:
    """Where in a text an access token or a password inside an address stands; None without one."""
    found = [match.span() for pattern in _patterns(text) if (match := pattern.search(text))]
    return min(found, default=None)


def without_secrets(text: str) -> str:
    """The text with access tokens, and what stands before the host of an address, replaced by three stars."""
    for pattern in _patterns(text):
        text = pattern.sub("***", text)
    return text


def _patterns(text: str) -> list[re.Pattern[str]]:
    return [pattern for marks, pattern in _SECRETS if any(mark in text for mark in marks)]


def without_home(text: str) -> str:
    """The text with `~` for the folder of whoever runs this."""
    home = os.path.expanduser("~").rstrip("/")  # noqa: PTH111 - Path.home raises where there is none
    if len(home) < 2 or home not in text:
        return text
    return re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)


def presentable(text: str) -> str:
    """What a message may say: one line of bounded length, no control characters, no secrets, no home folder."""
    shown = without_home(without_secrets(printable(text[: 2 * _LONGEST])))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."


def publishable(content: Any, verbatim: Collection[str] = ()) -> Any:
    """A JSON document without secrets and home folder; values of the keys in `verbatim` stay as they are."""
    if isinstance(content, str):
        return without_home(without_secrets(content))
    if isinstance(content, Mapping):
        return {key: value if key in verbatim else publishable(value, verbatim) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [publishable(value, verbatim) for value in content]
    return content

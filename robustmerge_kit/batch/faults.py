"""Which failures may be gone at the next attempt: of the network, of the Hub, of a network file system; never of a recipe."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ..errors import RmkitError, Several

ERRNOS = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EREMOTEIO,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EPIPE,
    }
)
"""What the operating system says of a disk, a file server or a network that may come back."""

STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server says that is busy or broken for the moment."""

_HTTP_LIBRARIES = ("httpx", "httpcore", "requests", "urllib3", "aiohttp")


def is_transient(error: BaseException) -> bool:
    """Whether to try again: decided by the innermost cause that is known; several errors must all be transient."""
    if isinstance(error, Several):
        return all(is_transient(part) for part in error.errors)
    verdicts = [verdict for cause in _causes(error) if (verdict := _judge(cause)) is not None]
    return bool(verdicts) and verdicts[-1]


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        yield inner
        inner = inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__)


def _judge(error: BaseException) -> bool | None:
    """None for an error that says nothing about its cause."""
    if isinstance(error, RmkitError):
        return None
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status in STATUS
    if type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES or isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in ERRNOS
    return None

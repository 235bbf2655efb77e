"""Files that stand in for the wanted ones: Git LFS pointers, web pages, empty files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import InputError

AGAIN = "download or copy the file again"


def refuse_impostor(head: bytes, size: int, where: str) -> None:
    """Refuse a file by its first bytes and its size.

    Raises: InputError naming what the file is.
    """
    if head.startswith(b"version https://git-lfs"):
        found = re.search(rb"^size ([0-9]{1,20})$", head, re.MULTILINE)
        announced = found[1].decode() if found else "?"
        raise InputError(
            f"is a Git LFS pointer (the real file has {announced} bytes)",
            where=where,
            hint="run `git lfs pull` in its repository, or download the file again",
        )
    # eight bytes without a zero are no header length below the limit, so a binary file is never taken for text
    if head.lstrip()[:1] == b"<" and b"\0" not in head[:8]:
        raise InputError("is a web page, not weights", where=where, hint="download it again while logged in, as a raw file")
    if size == 0:
        raise InputError("is truncated: 0 bytes", where=where, hint=AGAIN)


def refuse_impostor_file(path: Path) -> None:
    """Refuse a file that stands in for the wanted one: Git LFS pointer, web page, empty file.

    Raises: InputError naming what the file is.
    """
    try:
        with path.open("rb") as file:
            refuse_impostor(file.read(512), os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error

"""Receipts, read: what a finished folder says it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .adapters import read_json
from .errors import InputError
from .sources import FileDigest

RECEIPT = "rmkit.json"


def read_receipt(folder: Path) -> Mapping[str, Any]:
    """The content of a folder's receipt.

    Raises: InputError when the folder or its receipt is not there, or the receipt is not JSON.
    """
    if not folder.is_dir():
        raise InputError("no such folder", where=str(folder), hint="give the output folder of `rmkit run` or `rmkit convert`")
    if not (folder / RECEIPT).is_file():
        raise InputError(
            f"is no finished output of rmkit: it has no receipt ({RECEIPT})",
            where=str(folder),
            hint="give the output folder of `rmkit run` or `rmkit convert`",
        )
    return read_json(folder / RECEIPT)


def listed_files(folder: Path, receipt: Mapping[str, Any]) -> dict[str, FileDigest]:
    """The files that a receipt vouches for, by their paths in the folder.

    Raises: InputError when the receipt is none that rmkit wrote, or names files outside of its folder.
    """
    try:
        found = {str(item["name"]): FileDigest(int(item["size"]), str(item["sha256"])) for item in receipt["output"]["files"]}
        [item["name"] for item in receipt["inputs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("is not a receipt that rmkit wrote", where=str(folder / RECEIPT)) from error
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise InputError(f"names a file outside of the folder: {name!r}", where=str(folder / RECEIPT))
    if not found:
        raise InputError("names no file", where=str(folder / RECEIPT))
    return found

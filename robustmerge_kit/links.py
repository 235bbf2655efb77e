"""Links and `~` in the paths of inputs: a stranger's folder must not lead the reader to the files of whoever runs this."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .errors import InputError

_HINT = "name the folder where the file really is, put a copy here, or allow: [links] in the recipe"
_BLOB = re.compile(r".*/(models|datasets|spaces)--[^/]+/blobs/[0-9a-f]{40,64}", re.DOTALL)


def as_path(text: str) -> Path:
    """A path as a user writes it, `~` written out; `~name` of a user who does not exist is a name like any other."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for a user who does not exist


def fence(folder: Path) -> Path:
    """Where links of a folder may lead: into the folder, or in the Hub's cache to the blobs of the same repository."""
    whole = folder.resolve()
    for parent in (whole, *whole.parents):
        if parent.parent.name == "snapshots" and (parent.parent.parent / "blobs").is_dir():
            return parent.parent.parent
    return whole


def leads_out(path: Path, limits: Path) -> bool:
    """Whether a path ends outside of `limits`, a fence; the Hub's cache is inside, since old downloads link to it."""
    real = os.path.realpath(path)
    return not Path(real).is_relative_to(limits) and _BLOB.fullmatch(real) is None


def refuse_leading_out(folder: Path, names: Iterable[str | None], home: Path, hint: str = _HINT) -> None:
    """Refuse files that are links out of the folder `home` they were found in; without links nothing is resolved.

    Raises: InputError naming the link and where it leads.
    """
    present = [folder / name for name in names if name]
    if not folder.is_symlink() and not any(path.is_symlink() for path in present):
        return
    limits = fence(home)
    for path in present:
        if path.exists() and leads_out(path, limits):
            raise InputError(
                f"is a link that leads outside of its folder, to {os.path.realpath(path)}",
                where=str(path),
                hint=hint,
            )

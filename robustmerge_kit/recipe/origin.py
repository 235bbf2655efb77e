"""What a recipe keeps of its making: its text, its files, where it lies; none of it changes a number."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..homes import Folder, Opened

if TYPE_CHECKING:
    from .search import Search


@dataclass(frozen=True)
class SourceFile:
    """A file a recipe was read from: what was asked for, without secrets, and what was there."""

    reference: str
    revision: str | None
    size: int
    sha256: str
    text: str


@dataclass(frozen=True)
class Origin:
    """The making of a recipe.

    text: what repeats it; its own text, or where `composed`, the whole recipe written out. place: the folder its relative paths
    start from; None: the working folder. stem: the name of its file. commits: what inputs are taken at, by reference.
    search: what the trials of a sweep draw.
    """

    text: str = ""
    place: Path | None = None
    stem: str = "recipe"
    notes: tuple[str, ...] = ()
    depth: int | None = None
    files: tuple[SourceFile, ...] = ()
    composed: bool = False
    commits: Mapping[str, str] = field(default_factory=dict[str, str])
    search: Search | None = None


def source_files(files: Sequence[Opened]) -> tuple[SourceFile, ...]:
    """The files of a recipe, its own first; paths of this machine are seen from the recipe's folder."""
    found: list[SourceFile] = []
    above: str | None = None
    for file in files:
        name = file.reference
        if isinstance(file.home, Folder):
            if above is None:
                name = posixpath.basename(name)
            elif not name.startswith(("/", "~")):
                name = posixpath.normpath(posixpath.join(posixpath.dirname(above), name))
            above = name
        found.append(SourceFile(name, file.revision, len(file.content), file.sha256, file.text))
    return tuple(found)

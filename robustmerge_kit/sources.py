"""Where an input lies: a reference as a user writes it -> a local folder, its revision and the hashes of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """An input that has been found. `reference` is what the user wrote, `folder` holds the files.

    `file` is set when the user named one weights file instead of its folder. `repository` and `revision` (a commit id) are
    set for Hub references only.
    """

    reference: str
    folder: Path
    file: Path | None = None
    repository: str | None = None
    revision: str | None = None


def resolve(reference: str, place: Path) -> Source:
    """Find an input: an existing or local-looking path (relative to `place`), else `org/name[@revision][:subfolder]`."""
    raise NotImplementedError

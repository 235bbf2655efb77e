"""Free space where the output goes."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import OutputError


def free_bytes(target: Path) -> int:
    """Bytes an ordinary user may still write where `target` lies or will lie."""
    place = target
    while not place.exists():
        place = place.parent
    stats = os.statvfs(place)
    return stats.f_bavail * stats.f_frsize


def check_space(target: Path, needed: int) -> None:
    """Refuse to start what cannot fit.

    Raises: OutputError with both numbers.
    """
    free = free_bytes(target)
    if needed > free:
        raise OutputError(
            f"needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB free",
            where=str(target),
            hint="make space or choose another output folder",
        )

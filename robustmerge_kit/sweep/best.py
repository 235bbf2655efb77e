"""The file of the best recipe so far; it is whole at every moment, and nobody else's file is replaced."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..errors import OutputError
from ..recipe import Recipe
from .trials import Trial


class BestFile:
    """Where the best recipe goes."""

    def __init__(self, path: Path, written: Path, overwrite: bool) -> None:
        """Look what is there. written: the file that lists the hashes of what sweeps have put there.

        Raises: OutputError for a file that no sweep of this recipe wrote, or a place that cannot be written.
        """
        self.path = path
        self._written = written
        if path.is_dir():
            raise OutputError("is a folder, where the best recipe is to go", where=str(path))
        try:
            there = path.read_text(encoding="utf-8") if os.path.lexists(path) else None
        except (OSError, ValueError):
            there = ""
        if there is not None and not overwrite and _hash(there) not in self._known():
            hint = "move it away, or add --overwrite"
            raise OutputError("exists, and is not what this sweep wrote", where=str(path), hint=hint)
        if not os.access(path.absolute().parent, os.W_OK):
            raise OutputError("the best recipe cannot be written there", where=str(path), hint="copy the recipe elsewhere")

    def write(self, text: str) -> None:
        """Put a recipe there, in one step.

        Raises: OutputError when the disk refuses.
        """
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            if _hash(text) not in self._known():
                with self._written.open("a", encoding="utf-8") as file:
                    file.write(f"{_hash(text)}\n")
            with scratch.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise OutputError.from_os(error, self.path) from error

    def _known(self) -> list[str]:
        return self._written.read_text(encoding="utf-8").splitlines() if self._written.exists() else []


def header(recipe: Recipe, best: Trial) -> str:
    """The comment above the best recipe: where it comes from and what was found."""
    assert recipe.sweep is not None
    values = ", ".join(f"{name}: {json.dumps(value)}" for name, value in best.params.items())
    return (
        f"# The best recipe that the sweep of {recipe.origin.stem} has found: trial {best.number}, score {best.score!r} "
        f"({recipe.sweep.direction}).\n# {values}\n"
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

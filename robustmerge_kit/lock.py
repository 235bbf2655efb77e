"""Lock files: what a recipe was made of when it was locked - commits, hashes, versions - and whether it still is.

A lock is JSON, `<recipe stem>.lock` beside the recipe. A recipe and its lock give the same bytes on the same kind of device,
which is no part of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from . import __version__, git
from .disclosure import publishable
from .errors import OutputError, PlanError, UsageError, raise_all
from .homes import companion
from .methods import provider
from .plan import Inputs
from .recipe import Recipe
from .sources import FileDigest, digest

FORMAT = 1
MAX_BYTES = 16_000_000


@dataclass(frozen=True)
class Lock:
    """A lock's content, and the file it is or will be in."""

    path: Path
    content: Mapping[str, Any]

    @cached_property
    def commits(self) -> dict[str, str]:
        """What recipes and inputs are to be taken at, by reference."""
        base = [self.content["base"]] if self.content["base"] else []
        entries = [*self.content["recipe"]["files"], *self.content["inputs"], *base]
        return {entry["reference"]: entry["revision"] for entry in entries if entry["revision"]}

    def check(self, recipe: Recipe, inputs: Inputs) -> None:
        """Compare with what is there.

        Raises: PlanError, several at once, for every difference.
        """
        hint = "if the change is meant, lock again with `rmkit lock`; if not, go back to what was locked"
        found = self.differences(take(recipe, inputs, self.path))
        last = len(found) - 1
        raise_all(PlanError(what, where=str(self.path), hint=hint if n == last else "") for n, what in enumerate(found))

    def differences(self, here: Lock) -> tuple[str, ...]:
        """Sentences about what differs from a lock taken here."""
        return tuple(_differences(self.content, here.content, ""))

    def write(self) -> bool:
        """Put it beside the recipe, whole or not at all; False where the same lock was there already.

        Raises: OutputError when the disk refuses.
        """
        text = f"{json.dumps(self.content, indent=2, ensure_ascii=False)}\n"
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            if self.path.is_file() and self.path.read_text(encoding="utf-8", errors="replace") == text:
                return False
            try:
                with scratch.open("x", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                scratch.replace(self.path)
            finally:
                scratch.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError.from_os(error, self.path) from error
        return True


def lock_path(reference: str) -> Path:
    """Where the lock of a recipe lies: `<recipe stem>.lock` beside it, for one from elsewhere in the working folder."""
    return companion(reference, ".lock")


def take(recipe: Recipe, inputs: Inputs, path: Path) -> Lock:
    """The lock of a recipe as everything is: every file is read once.

    Raises: InputError when a file cannot be read.
    """
    adapters = [list(adapter.files) for adapter in inputs.adapters]
    base = _base_files(inputs)
    digests = digest([file for files in (*adapters, list(base.values())) for file in files])

    def told(name: str, file: Path) -> dict[str, Any]:
        return {"name": name, **asdict(digests[file])}

    content: dict[str, Any] = {
        "lock": FORMAT,
        "recipe": {
            "files": [
                {"reference": f.reference, "revision": f.revision, **asdict(FileDigest(f.size, f.sha256))}
                for f in recipe.origin.files
            ],
            "variables": dict(recipe.vars),
            "seed": recipe.seed,
        },
        "inputs": [
            {
                "reference": git.shown(entry.adapter),
                "repository": adapter.source.repository,
                "revision": adapter.source.revision,
                "files": [told(file.name, file) for file in files],
            }
            for entry, adapter, files in zip(recipe.adapters, inputs.adapters, adapters, strict=True)
        ],
        "base": inputs.base
        and {
            "reference": recipe.base_model,
            "repository": inputs.base.source.repository,
            "revision": inputs.base.source.revision,
            "files": [told(name, file) for name, file in base.items()],
        },
        "tools": _tools(),
        "methods": {name: provider(name) for name in _methods(recipe)},
    }
    return Lock(path, {key: publishable(value) for key, value in content.items()})


def read_lock(path: Path) -> Lock:
    """The lock in a file.

    Raises: UsageError when there is none, or the file is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        content = json.loads(text) if len(text) <= MAX_BYTES else None
    except FileNotFoundError as error:
        raise UsageError("no such lock file", where=str(path), hint="`rmkit lock RECIPE` writes it") from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError("is not a lock file: not JSON", where=str(path), hint="lock again with `rmkit lock`") from error
    if isinstance(content, dict) and content.get("lock") != FORMAT and "lock" in content:
        what = f"is a lock of format {content['lock']!r:.20}, this version reads {FORMAT}"
        raise UsageError(what, where=str(path), hint="lock again with `rmkit lock`")
    if not _well_formed(content):
        raise UsageError("is not a lock file", where=str(path), hint="lock again with `rmkit lock`")
    return Lock(path, content)


def _base_files(inputs: Inputs) -> dict[str, Path]:
    """Every file of the base that the result depends on, by its name in the base's folder."""
    base = inputs.base
    if base is None:
        return {}
    weights = {file.name: file.path for file in base.files}
    beside = {name: base.folder / name for name in (*base.indexes, *base.beside)}
    return {name: path for name, path in sorted({**beside, **weights}.items()) if path.is_file()}


def _tools() -> dict[str, str]:
    """The programs whose versions may change a number."""
    import numpy
    import torch

    return {"rmkit": __version__, "torch": torch.__version__, "numpy": numpy.__version__}


def _methods(recipe: Recipe) -> list[str]:
    named = (recipe.merge_method, *(override.merge_method for override in recipe.overrides))
    return sorted({name for name in named if name is not None})


def _well_formed(content: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a lock's references and commits stand where they belong; all else is only compared."""
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        return False
    base = [content["base"]] if content.get("base") is not None else []
    files, inputs = content["recipe"].get("files"), content.get("inputs")
    if "base" not in content or not isinstance(files, list) or not isinstance(inputs, list):
        return False
    entries = [*files, *inputs, *base]
    return all(
        isinstance(entry, dict)
        and isinstance(entry.get("reference"), str)
        and ("revision" in entry and isinstance(entry["revision"], str | None))
        for entry in entries
    )


def _differences(locked: Any, here: Any, path: str) -> Iterator[str]:
    """Sentences about what differs, in the order of a lock."""
    if isinstance(locked, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys((*here, *locked)):
            way = f"{path}.{key}" if path else str(key)
            if key not in here:
                yield f"{way} is locked as {_show(locked[key])}, and is not there"
            elif key not in locked:
                yield f"{way} is {_show(here[key])}, and is not in the lock"
            else:
                yield from _differences(locked[key], here[key], way)
    elif isinstance(locked, list) and isinstance(here, list) and all(isinstance(x, Mapping) for x in (*locked, *here)):
        for number in range(max(len(locked), len(here))):
            if number >= len(here):
                yield f"{path}[{number}] is locked as {_show(locked[number])}, and is not there"
            elif number >= len(locked):
                yield f"{path}[{number}] is {_show(here[number])}, and is not in the lock"
            else:
                yield from _differences(locked[number], here[number], f"{path}[{_show(here[number])}]")
    elif locked != here:
        yield f"{path} is {_show(here)}, locked is {_show(locked)}"


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name", value.get("reference", "something else")))
    return json.dumps(value, ensure_ascii=False)[:200]

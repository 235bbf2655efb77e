"""Whether an output folder holds what a recipe would make, judged by the receipt in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapters import Adapter
from ..recipe import Recipe
from ..sources import digest

RECEIPT = "rmkit.json"


def difference(recipe: Recipe, adapters: Sequence[Adapter], target: Path) -> str | None:
    """What tells the folder from one that this recipe and these inputs make; None when nothing does.

    Compared are the recipe's text, names, sizes and hashes of all input files, names and sizes of the files written.
    Raises: InputError when an input cannot be read.
    """
    receipt = _read(target)
    if receipt is None:
        return "it has no receipt of rmkit"
    try:
        if receipt["recipe"]["sha256"] != hashlib.sha256(recipe.text.encode()).hexdigest():
            return "it was made from another recipe"
        for entry in receipt["output"]["files"]:
            path = target / entry["name"]
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return f"its file {entry['name']} is missing or was changed"
        recorded = [_names(entry["files"]) for entry in receipt["inputs"]]
    except (KeyError, TypeError, AttributeError):
        return "its receipt is of another version of rmkit"
    found = digest({path for adapter in adapters for path in adapter.files})
    for i, adapter in enumerate(adapters):
        if i >= len(recorded) or recorded[i] != {path.name: found[path].sha256 for path in adapter.files}:
            return f"its input {adapter.label} was another"
    return None if len(recorded) == len(adapters) else "its inputs were others"


def _read(target: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads((target / RECEIPT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _names(files: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in files}

"""Whether an output folder holds what a recipe would make, judged by the receipt in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plan import Plan
from ..sources import FileDigest, digest

RECEIPT = "rmkit.json"


def difference(plan: Plan, target: Path) -> str | None:
    """What tells the folder from one that this plan makes; None when nothing does.

    Compared are the recipe's text, names and hashes of all input files, names and sizes of the files written; the commit of a
    base from the Hub.
    Raises: InputError when an input cannot be read.
    """
    receipt = _read(target)
    if receipt is None:
        return "it has no receipt of rmkit"
    try:
        if receipt["recipe"]["sha256"] != hashlib.sha256(plan.recipe.text.encode()).hexdigest():
            return "it was made from another recipe"
        for entry in receipt["output"]["files"]:
            path = target / entry["name"]
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return f"its file {entry['name']} is missing or was changed"
        recorded = [_names(entry["files"]) for entry in receipt["inputs"]]
        base = receipt["base"] if plan.fold else None
    except (KeyError, TypeError, AttributeError):
        return "its receipt is of another version of rmkit"
    found = digest(input_files(plan))
    for i, adapter in enumerate(plan.adapters):
        if i >= len(recorded) or recorded[i] != {path.name: found[path].sha256 for path in adapter.files}:
            return f"its input {adapter.label} was another"
    if len(recorded) != len(plan.adapters):
        return "its inputs were others"
    return "its base was another" if base is not None and not _same_base(plan, base, found) else None


def input_files(plan: Plan) -> list[Path]:
    """Every file of the inputs; not those of a base from the Hub, whose commit says what is in them."""
    local = plan.fold is not None and plan.fold.base.source.revision is None
    base = plan.fold.base.files if plan.fold is not None and local else ()
    return [*(path for adapter in plan.adapters for path in adapter.files), *(file.path for file in base)]


def _same_base(plan: Plan, recorded: Mapping[str, Any], found: Mapping[Path, FileDigest]) -> bool:
    assert plan.fold is not None
    base = plan.fold.base
    if base.source.revision is not None:
        return recorded.get("revision") == base.source.revision and recorded.get("repository") == base.source.repository
    return {entry["name"]: entry.get("sha256") for entry in recorded["files"]} == {
        file.name: found[file.path].sha256 for file in base.files
    }


def _read(target: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads((target / RECEIPT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _names(files: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in files}

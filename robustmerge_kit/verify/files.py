"""The files of an output against the hashes in its receipt, and against what the base has beside its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..output import PICTURE
from ..plan import Fold
from ..recorded import RECEIPT
from ..sources import FileDigest, digest
from .records import Finding

CARD = "README.md"
UNCOVERED = (RECEIPT, CARD, PICTURE)
"""Files that no receipt vouches for: the receipt itself, and what is written from it."""


def compare_files(folder: Path, listed: Mapping[str, FileDigest]) -> list[Finding]:
    """What is missing, changed or not in the receipt; hidden files are nobody's.

    Raises: InputError when a file cannot be read.
    """
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hashed = digest(there[name] for name in listed if name in there)
    found: list[Finding] = []
    for name, wanted in sorted(listed.items()):
        if name not in there:
            found.append(Finding(name, "is missing, though the receipt names it"))
            continue
        now = hashed[there[name]]
        if now.size != wanted.size:
            found.append(Finding(name, f"has {now.size} bytes, the receipt says {wanted.size}"))
        elif now.sha256 != wanted.sha256:
            found.append(Finding(name, f"was changed: sha256 {now.sha256[:12]}.., the receipt says {wanted.sha256[:12]}.."))
    hidden = {name for name in there if any(part.startswith(".") for part in name.split("/"))}
    others = sorted(there.keys() - listed.keys() - set(UNCOVERED) - hidden)
    found.extend(Finding(name, "is not in the receipt") for name in others)
    return found


def recipe_fits(folder: Path, name: str, receipt: Mapping[str, Any]) -> bool:
    """Whether the recipe beside the output is the one that the receipt names."""
    try:
        content = (folder / name).read_bytes()
        return hashlib.sha256(content).hexdigest() == receipt["recipe"]["sha256"]
    except (OSError, KeyError, TypeError):
        return False


def compare_beside(folder: Path, fold: Fold, found: Checkpoint) -> Iterator[Finding]:
    """Configurations with the keys that change, indexes with their sum of bytes, and all else as the base has it."""
    for prefix, config in fold.base.configs.items():
        wanted, now = {**config, **fold.configs.get(prefix, {})}, found.configs.get(prefix, {})
        name = f"{prefix.removesuffix('.')}/config.json" if prefix else "config.json"
        for key in sorted(key for key in wanted.keys() | now.keys() if wanted.get(key) != now.get(key)):
            yield Finding(name, f"{key} is {_short(now.get(key))}, expected {_short(wanted.get(key))}")
    for index in found.indexes:
        content = json.loads((folder / index).read_text(encoding="utf-8"))
        total = sum(found_bytes(found, index, content["weight_map"]))
        stated = content.get("metadata", {}).get("total_size")
        if stated != total:
            yield Finding(index, f"states a total_size of {_short(stated)}, its tensors have {total} bytes")
    changed = {f"{prefix.removesuffix('.')}/config.json".lstrip("/") for prefix in fold.base.configs}
    pairs = {fold.base.folder / name: folder / name for name in fold.beside if name not in changed}
    pairs = {ours: theirs for ours, theirs in pairs.items() if theirs.is_file()}
    hashes = digest([*pairs, *pairs.values()])
    for ours, theirs in pairs.items():
        if hashes[ours] != hashes[theirs]:
            yield Finding(theirs.relative_to(folder).as_posix(), "differs from the base's")


def found_bytes(found: Checkpoint, index: str, weight_map: Mapping[str, str]) -> Iterator[int]:
    """Bytes of every tensor that an index names."""
    folder = index.rpartition("/")[0]
    prefix = f"{folder}." if folder else ""
    for name in weight_map:
        ref = found.tensors.get(prefix + name)
        yield ref.spec.nbytes if ref else 0


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""The YAML at the top of a model card: what a stranger's card says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from .yaml_text import read_yaml

_LIMIT = 1 << 20
_BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def parse_front_matter(text: str) -> Mapping[str, Any]:
    """The entries between the lines of three dashes at the start of a card; empty where there are none, or no YAML."""
    block = _BLOCK.match(text)
    if block is None:
        return {}
    try:
        data = read_yaml(block["yaml"], "README.md").data
    except RecipeError:
        return {}
    return data if isinstance(data, dict) else {}


def licence_beside(folder: Path) -> str | None:
    """The licence that the card in a folder names; None without a card, or where it names none."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(_LIMIT).decode("utf-8", "replace")
    except OSError:
        return None
    return licence_in(parse_front_matter(text))


def licence_in(entries: Mapping[str, Any]) -> str | None:
    """The licence among a card's entries; `license: other` gives its `license_name`, if there is one."""
    licence, name = entries.get("license"), entries.get("license_name")
    if licence == "other" and isinstance(name, str):
        licence = name
    return licence.strip()[:100] if isinstance(licence, str) and licence.strip() else None

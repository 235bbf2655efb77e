"""The YAML at the top of a model card: what a stranger's card says of itself, and what a card of ours says to the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import RecipeError
from .yaml_text import read_yaml

Relation = Literal["adapter", "merge", "finetune"]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]*")
_PLAIN = re.compile(r"[A-Za-z][\w.\-]*")
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


def front_matter(base: str | None, relation: Relation, tags: Sequence[str], licences: Mapping[str, str | None]) -> str:
    """The block of YAML. A base that is no repository's name is left out, and with it the relation.

    licences: what each input's card says.
    """
    lines = ["---"]
    if base and HUB_NAME.fullmatch(base):
        lines += [f"base_model: {base}", f"base_model_relation: {relation}"]
    lines.append(f"library_name: {'peft' if relation == 'adapter' else 'transformers'}")
    lines += licence_lines(licences)
    plain = [tag for tag in dict.fromkeys(tags) if _PLAIN.fullmatch(tag)]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in plain), "---"])


def licence_lines(licences: Mapping[str, str | None]) -> list[str]:
    """`license`, where all inputs state the same one; `other`, where they state several; nothing, where some state none."""
    stated = set(licences.values())
    if len(stated) == 1 and (licence := next(iter(stated))) and _LICENCE.fullmatch(licence):
        return [f"license: {licence}"]
    return ["license: other", "license_name: several-see-the-card"] if len(stated - {None}) > 1 else []


def licence_note(licences: Mapping[str, str | None]) -> str:
    """A section on licences, "" where all inputs state the same one, or none states any."""
    stated = {licence for licence in licences.values() if licence}
    if not stated or (set(licences.values()) == stated and len(stated) == 1):
        return ""
    listed = "\n".join(f"- {_cell(name)}: {_cell(licence or 'not stated')}" for name, licence in licences.items())
    first = (
        "The inputs have different licences; the result must obey all of them at once."
        if len(stated) > 1
        else "Not every input states its licence."
    )
    return f"## Licences\n\n{first}\n\n{listed}"


def licences_of(receipt: Mapping[str, Any]) -> dict[str, str | None]:
    """Input -> its licence, from a receipt."""
    return {item["name"]: item.get("license") for item in receipt["inputs"]}


def _cell(text: str) -> str:
    return re.sub(r"[\n\r|<>`\[\]]", " ", text)

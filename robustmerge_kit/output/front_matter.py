"""What stands at the top of a card for the Hub to read: base model, relation to it, tags, licence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Relation = Literal["adapter", "merge", "finetune"]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]*")
_PLAIN = re.compile(r"[A-Za-z][\w.\-]*")


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

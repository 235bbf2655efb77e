"""The model card (README.md) of a converted adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..output.card import table_cell
from ..recipe.front_matter import front_matter, licence_note, licences_of


def write_card(receipt: Mapping[str, Any], title: str) -> str:
    """The card as Markdown, from the receipt: front matter, what became what, remarks."""
    inputs, output, done = receipt["inputs"], receipt["output"], receipt["conversion"]
    base = done["base_model"] or next((item["base_model"] for item in inputs if item["base_model"]), None)
    licences = licences_of(receipt)
    rows = [
        f"| {table_cell(item['name'])} | {table_cell(item['reference'])} | {table_cell(item['revision'] or '')} |"
        for item in inputs
    ]
    scaled = receipt["totals"]["scaled"]
    exact = (
        f"{scaled} factors hold their scale; rounding them costs {receipt['totals']['rounding_error']:.1e}"
        if scaled
        else "every factor has the numbers of the input, bit for bit"
    )
    remarks = [*(f"dropped {line}" for line in receipt["dropped"]), *receipt["notes"]]
    parts = [
        front_matter(base, "adapter", ["lora", "rmkit", output["layout"]], licences),
        f"# {title}",
        f"A LoRA adapter of {receipt['totals']['sites']} modules, converted from the layout {done['from']} to {done['to']} "
        f"by rmkit {receipt['rmkit']}.",
        "## Input\n\n| name | reference | revision |\n|---|---|---|\n" + "\n".join(rows),
        f"## Result\n\n- dtype: {output['dtype']}\n- {exact}",
        "## Notes\n\n" + "\n".join(f"- {line}" for line in remarks) if remarks else "",
        licence_note(licences),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"

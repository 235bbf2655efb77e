"""The model card (README.md) of a merged adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..disclosure import printable, without_home
from ..plan import Plan
from ..recipe.front_matter import front_matter, licence_note, licences_of
from .summary import conflict, counted, memory

PICTURE = "rmkit.svg"
"""The file beside the card that it shows."""


def write_card(plan: Plan, receipt: Mapping[str, Any], title: str) -> str:
    """The card as Markdown: front matter the Hub understands, inputs, figures, and the recipe that repeats the merge."""
    method = plan.recipe.merge_method
    rows = [
        f"| {table_cell(item['name'])} | {table_cell(item['reference'])} | {table_cell(item['revision'] or '')} |"
        for item in receipt["inputs"]
    ]
    what = ("the base and " if receipt["output"]["kind"] == "model" else "") + counted(len(rows), "LoRA adapter")
    parts = [
        _front_matter(plan, method, receipt),
        f"# {plain(title)}",
        f"A merge of {what} by `{method}`, made with rmkit {receipt['rmkit']}.",
        "## Inputs\n\n| name | reference | revision |\n|---|---|---|\n" + "\n".join(rows),
        _result(receipt),
        _serving(receipt),
        _notes(receipt),
        licence_note(licences_of(receipt)),
        "## Recipe\n\nSave as `recipe.yaml` and run `rmkit run recipe.yaml`; `rmkit.json` lists the hashes of all inputs.\n\n"
        + _fenced(without_home(plan.recipe.text)),
        str(plan.recipe.meta) if isinstance(plan.recipe.meta, str) else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(plan: Plan, method: str, receipt: Mapping[str, Any]) -> str:
    named = (plan.recipe.base_model or "").removeprefix("hf://")
    base = named or next((adapter.base for adapter in plan.adapters if adapter.base), None)
    folded = plan.recipe.output.kind == "model"
    relation = "adapter" if not folded else "merge" if len(plan.adapters) > 1 else "finetune"
    return front_matter(base, relation, ["merge", "lora", "rmkit", method.replace("/", "-")], licences_of(receipt))


def _result(receipt: Mapping[str, Any]) -> str:
    totals, output = receipt["totals"], receipt["output"]
    rank = str(output["rank"]) if output["rank"] else "by site, see `rank_pattern`"
    lines = [
        "" if output["kind"] == "model" else f"rank: {rank}; scale 1 (`lora_alpha` = `r`), dtype {output['dtype']}",
        f"sites: {totals['sites']}",
        f"energy kept by the rank limit: {totals['retained_energy']:.4%}",
        f"relative error of rounding to {output['dtype']}: {totals['rounding_error']:.2e}",
        table_cell(conflict(receipt)),
        f"time: {receipt['timings']['total']:.1f} s on {receipt['device']['type']}",
        memory(receipt),
    ]
    listed = "\n".join(f"- {line}" for line in lines if line)
    return f"## Result\n\n{listed}\n\n![The merged update by layer and module]({PICTURE})"


def _serving(receipt: Mapping[str, Any]) -> str:
    served = receipt["serving"]
    if served["command"]:
        return f"## Serving\n\nFOLDER is where this lies. Not tried where it was made.\n\n{_fenced(served['command'], 'sh')}"
    return f"## Serving\n\n{served['note']}" if served["note"] else ""


def _notes(receipt: Mapping[str, Any]) -> str:
    remarks = [*(f"dropped {line}" for line in receipt["dropped"]), *receipt["notes"]]
    return "## Notes\n\n" + "\n".join(f"- {plain(line)}" for line in remarks) if remarks else ""


def table_cell(text: str) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return plain(text).replace("|", "\\|")


def plain(text: str) -> str:
    """A stranger's words as one line of Markdown without links, pictures, code and HTML."""
    return printable(text).replace("[", "\\[").replace("`", "'").replace("<", "&lt;")


def _fenced(text: str, language: str = "yaml") -> str:
    """The text in a code fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"

"""The model card (README.md) of a merged adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..plan import Plan

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def write_card(plan: Plan, receipt: Mapping[str, Any], title: str) -> str:
    """The card as Markdown: front matter the Hub understands, inputs, figures, and the recipe that repeats the merge."""
    totals, output = receipt["totals"], receipt["output"]
    method = plan.recipe.merge_method
    rows = [
        f"| {_cell(item['name'])} | {_cell(item['reference'])} | {_cell(item['revision'] or '')} |"
        for item in receipt["inputs"]
    ]
    rank = str(output["rank"]) if output["rank"] else "by site, see `rank_pattern`"
    parts = [
        _front_matter(plan, method),
        f"# {title}",
        f"A merge of {len(rows)} LoRA adapters by `{method}`, made with rmkit {receipt['rmkit']}.",
        "## Inputs\n\n| name | reference | revision |\n|---|---|---|\n" + "\n".join(rows),
        "## Result\n\n"
        f"- rank: {rank}; scale 1 (`lora_alpha` = `r`), dtype {output['dtype']}\n"
        f"- sites: {totals['sites']}\n"
        f"- energy kept by the rank limit: {totals['retained_energy']:.4%}\n"
        f"- relative error of rounding to {output['dtype']}: {totals['rounding_error']:.2e}",
        _notes(receipt),
        "## Recipe\n\nSave as `recipe.yaml` and run `rmkit run recipe.yaml`; `rmkit.json` lists the hashes of all inputs.\n\n"
        + _fenced(plan.recipe.text),
        str(plan.recipe.meta) if isinstance(plan.recipe.meta, str) else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(plan: Plan, method: str) -> str:
    base = plan.recipe.base_model or next((adapter.base for adapter in plan.adapters if adapter.base), None)
    lines = ["---"]
    if base and _HUB_NAME.fullmatch(base):
        lines += [f"base_model: {base}", "base_model_relation: adapter"]
    lines += ["library_name: peft", "tags:", "- merge", "- lora", "- rmkit", f"- {method.replace('/', '-')}", "---"]
    return "\n".join(lines)


def _notes(receipt: Mapping[str, Any]) -> str:
    remarks = [*(f"dropped {line}" for line in receipt["dropped"]), *receipt["notes"]]
    return "## Notes\n\n" + "\n".join(f"- {line}" for line in remarks) if remarks else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fenced(text: str) -> str:
    """The text in a code fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"

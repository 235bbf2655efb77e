"""A first recipe for adapters at hand, every key explained: what `rmkit init` writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from ruamel.yaml import YAML

METHOD = "robustmerge"


@dataclass(frozen=True)
class Found:
    """What a first recipe tells of one adapter."""

    reference: str
    label: str
    ranks: tuple[int, ...]
    base: str | None
    sites: int


def starter(adapters: Sequence[Found]) -> str:
    """The commented recipe that merges these adapters by RobustMerge with the settings its authors released."""
    bases = Counter(adapter.base for adapter in adapters if adapter.base)
    base = bases.most_common(1)[0][0] if bases else None
    lines = [
        "# A recipe for rmkit: `rmkit plan` shows what it would do, `rmkit run` does it.",
        "",
        "# How adapters are merged; `rmkit methods` lists all methods, `rmkit methods NAME` explains one.",
        f"merge_method: {METHOD}",
        "",
        "# The inputs: folders relative to this file, or org/name[@revision][:subfolder]. The weight is a coefficient.",
        "adapters:",
    ]
    labels = Counter(adapter.label for adapter in adapters)
    for adapter in adapters:
        lines.append(f"  - adapter: {_scalar(adapter.reference)}  # {_facts(adapter)}")
        if adapter.label and labels[adapter.label] == 1:
            lines.append(f"    name: {_scalar(adapter.label)}")
        lines.append("    parameters: {weight: 1.0}")
    lines += [
        "",
        "# Settings of the method; a value may also be a gradient over the layers, [first, .., last].",
        "parameters:",
        "  variant: official  # what the authors released; paper: exact, rank is the sum of ranks; factor_sum: gain once",
        "  density: 0.2       # fraction of every factor's entries that is kept",
        "  gain: 2.0          # output multiplier; in `official` it enters both factors",
        "",
        "# The model the adapters were trained on; needed to fold.",
        f"base_model: {_scalar(base)}" if base else "# base_model: org/name",
        "",
        "missing: error  # a site only some adapters have: error, zero or renormalize",
        "extras: error   # tensors outside LoRA that differ: error, mean, first, {first: NAME} or drop",
        "seed: 0         # for methods that draw random numbers",
        "",
        "output:",
        "  kind: adapter      # what is written",
        "  rank: auto         # auto (the method's own), sum, max, a number, {energy: 0.99} or {budget: {average: 16}}",
        "  format: peft       # peft, llava, or same as the inputs'",
        "  # dtype: bfloat16  # default: the inputs' own",
        "  # path: merged     # folder to write, where the command line names none",
        "",
    ]
    return "\n".join(lines)


def _facts(adapter: Found) -> str:
    ranks = sorted(set(adapter.ranks))
    rank = "rank ?" if not ranks else f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    base = f", base {adapter.base}" if adapter.base and adapter.base.isprintable() else ""
    return f"{rank}, {adapter.sites} sites{base}"


def _scalar(text: str) -> str:
    """Text as YAML writes it, in quotes where it must be."""
    out = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.width = 1_000_000
    yaml.dump([text], out)
    return out.getvalue().strip().removeprefix("[").removesuffix("]").removeprefix("- ").strip()

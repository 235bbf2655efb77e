"""Fused experts in a written adapter: how PEFT nests their factors, in which order their columns lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..adapters import Adapter, Columns, registered_order
from ..errors import PlanError
from .steps import SiteStep
from .targets import Target


def nest_experts(steps: Sequence[SiteStep], target: Target) -> list[SiteStep]:
    """The steps with the names that their parameters have together in one file: what is registered last is outside.

    Raises: PlanError when it is not known which of two parameters of a module a model registers first.
    """
    if target.layout == "model":
        return list(steps)
    behind: dict[str, set[str]] = defaultdict(set)
    for step in steps:
        if step.experts is not None:
            module, _, name = step.site.rpartition(".")
            behind[module].add(name)
    depth: dict[str, int] = {}
    for module, names in behind.items():
        ordered = registered_order(names) if len(names) > 1 else list(names)
        if ordered is None:
            raise PlanError(
                f"{module}: it is not known in which order a model registers {', '.join(sorted(names))}",
                hint="merge adapters of one of these parameters at a time",
            )
        depth |= {f"{module}.{name}": i for i, name in enumerate(reversed(ordered))}
    return [
        step
        if step.experts is None
        else replace(step, names=target.factor_names(step.site, replace(step.model, nesting=depth[step.site])))
        for step in steps
    ]


def common_columns(adapters: Sequence[Adapter]) -> Columns:
    """The order of columns to write: Unsloth's where all inputs have it, else PEFT's."""
    found = {factors.columns for adapter in adapters for factors in adapter.sites.values() if factors.kind == "experts"}
    return "unsloth" if found == {"unsloth"} else "peft"

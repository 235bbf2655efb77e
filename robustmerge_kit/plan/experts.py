"""Fused experts in a written adapter: how PEFT nests their factors, in which order their columns lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..adapters import Adapter, Columns, registered_order
from ..errors import PlanError


def nest_experts(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters with the nesting that all their parameters together have in one file: what is registered last is outside.

    Raises: PlanError when it is not known which of two parameters of a module a model registers first.
    """
    behind: dict[str, set[str]] = defaultdict(set)
    for adapter in adapters:
        for site, factors in adapter.sites.items():
            if factors.kind == "experts":
                behind[site.rpartition(".")[0]].add(site.rpartition(".")[2])
    if not behind:
        return list(adapters)
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
        replace(
            adapter,
            sites={
                site: replace(factors, nesting=depth[site]) if factors.kind == "experts" else factors
                for site, factors in adapter.sites.items()
            },
        )
        for adapter in adapters
    ]


def common_columns(adapters: Sequence[Adapter]) -> Columns:
    """The order of columns to write: Unsloth's where all inputs have it, else PEFT's."""
    found = {factors.columns for adapter in adapters for factors in adapter.sites.values() if factors.kind == "experts"}
    return "unsloth" if found == {"unsloth"} else "peft"

"""The `adapter_config.json` of a merged adapter: one safe profile that PEFT and every server reads alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..adapters import Adapter, is_target
from ..plan import Plan


def adapter_config(plan: Plan, rank: int, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The configuration: alpha = r, so the scale is 1 and lies inside B; no variants, no patterns unless ranks differ.

    rank: the largest rank, ranks: by site.
    """
    differing = {site: r for site, r in sorted(ranks.items()) if r != rank}
    pattern = {exactly(site): r for site, r in differing.items()}
    extras = [step.name for step in plan.extras]
    config: dict[str, Any] = {
        "alpha_pattern": pattern,
        "auto_mapping": None,
        "base_model_name_or_path": _base(plan),
        "bias": _bias(plan),
        "fan_in_fan_out": any(bool(adapter.config.get("fan_in_fan_out")) for adapter in plan.adapters),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": rank,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": saved_modules(plan.adapters, extras) if plan.target.extras is None else None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": pattern,
        "revision": None,
        "target_modules": _targets(plan),
        "task_type": _common(plan.adapters, "task_type"),
        "use_dora": False,
        "use_rslora": False,
    }
    parameters = _parameters(plan)
    if parameters:
        config["target_parameters"] = _target_parameters(plan, set(parameters.values()))
        config["peft_version"] = _version_of_experts(plan)
    return config


def exactly(site: str) -> str:
    """A pattern of PEFT's that fits one module, whatever operators its name holds."""
    return "^" + re.sub(r"[.^$*+?{}\[\]\\|()]", r"\\\g<0>", site)


def _base(plan: Plan) -> str | None:
    if plan.recipe.base_model:
        return plan.recipe.base_model
    return next((adapter.base for adapter in plan.adapters if adapter.base), None)


def _common(adapters: tuple[Adapter, ...], key: str) -> Any:
    values = [adapter.config.get(key) for adapter in adapters]
    return values[0] if all(value == values[0] for value in values) else None


def _bias(plan: Plan) -> str:
    kept = {adapter.extras[step.name].kind for step in plan.extras for adapter in plan.adapters if step.name in adapter.extras}
    if "bias" not in kept:
        return "none"
    return str(next(a.config.get("bias") for a in plan.adapters if a.config.get("bias") not in (None, "none")))


def saved_modules(adapters: tuple[Adapter, ...], extras: list[str]) -> list[str] | None:
    """Names for PEFT's `modules_to_save`: those of the inputs that cover an extra, else the extra's own module."""
    kinds = {name: extra.kind for adapter in adapters for name, extra in adapter.extras.items()}
    modules = sorted({name.rpartition(".")[0] for name in extras if kinds[name] == "saved"})
    listed = sorted({str(entry) for adapter in adapters for entry in adapter.config.get("modules_to_save") or ()})
    covering = [entry for entry in listed if any(_covers(entry, module) for module in modules)]
    own = [module for module in modules if not any(_covers(entry, module) for entry in covering)]
    return sorted({*covering, *own}) or None


def _covers(entry: str, module: str) -> bool:
    """PEFT matches the end of a module's name, without asking for a dot before it."""
    parts = module.split(".")
    return any(".".join(parts[:i]).endswith(entry) for i in range(1, len(parts) + 1))


def _targets(plan: Plan) -> list[str]:
    """Leaf names when they select exactly the written sites, as far as the inputs can tell; else full module names.

    An input that lists a leaf in `target_modules` and restricts nothing has adapted every module of that name, so its keys
    show all of them.
    """
    sites = {step.site for step in plan.steps} - _parameters(plan).keys()
    leaves = {site.rpartition(".")[2] for site in sites}
    proven: set[str] = set()
    for adapter in plan.adapters:
        listed = adapter.config.get("target_modules")
        if isinstance(listed, list) and not any(adapter.config.get(key) for key in ("layers_to_transform", "exclude_modules")):
            proven |= {leaf for leaf in leaves & set(map(str, listed)) if _sites_of(adapter, leaf) <= sites}
    return sorted(leaves) if leaves <= proven else sorted(sites)


def _parameters(plan: Plan) -> dict[str, str]:
    """Sites that PEFT adapts by a parameter's name: fused experts, and weights of modules it does not know -> that name."""
    entries = {entry for adapter in plan.adapters for entry in _listed_parameters(adapter)}
    found: dict[str, str] = {}
    for step in plan.steps:
        if step.experts is not None:
            found[step.site] = step.site
        elif is_target(f"{step.site}.weight", {entry for entry in entries if "." in entry}):
            found[step.site] = f"{step.site}.weight"
    return found


def _listed_parameters(adapter: Adapter) -> list[str]:
    listed = adapter.config.get("target_parameters")
    return [str(entry) for entry in listed] if isinstance(listed, list) else []


def _target_parameters(plan: Plan, written: set[str]) -> list[str]:
    """The inputs' entries when they select exactly the written parameters, as far as the inputs can tell; else full names."""
    proven: set[str] = set()
    for adapter in plan.adapters:
        owned = adapter.sites.keys() | {f"{site}.weight" for site in adapter.sites}
        for entry in _listed_parameters(adapter):
            covered = {name for name in owned if is_target(name, [entry])}
            if covered & written and all(name in written for name in covered if name in adapter.sites):
                proven.add(entry)
    return sorted(proven) if all(is_target(name, proven) for name in written) else sorted(written)


def _version_of_experts(plan: Plan) -> str | None:
    """The PEFT version whose order of axes the written experts have: that of the inputs they are modelled on."""
    for step in plan.steps:
        if step.experts is not None and not step.model.flipped:
            return plan.adapters[step.members[0].index].config.get("peft_version")
    return None


def _sites_of(adapter: Adapter, leaf: str) -> set[str]:
    return {site for site in adapter.sites if site.rpartition(".")[2] == leaf}

"""Output layouts: how the tensors of a merged adapter are called, and which files its folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..adapters import Columns, SiteFactors


@dataclass(frozen=True)
class Target:
    """One output layout.

    factor_names: (site, factors of an input) -> names of A and B in the file. extra_name: module path -> name in the file.
    weights: file of the LoRA tensors. extras: file of the other tensors, None: they lie in the same file.
    alpha_name: name of a scalar per site that holds alpha, which is the rank, as kohya's tools expect it.
    columns: how the factors of fused experts lie.
    """

    layout: Literal["peft", "llava", "same", "model"]
    factor_names: Callable[[str, SiteFactors], tuple[str, str]]
    extra_name: Callable[[str], str]
    weights: str
    extras: str | None = None
    alpha_name: Callable[[SiteFactors], str] | None = None
    columns: Columns = "peft"


def _peft_names(site: str, factors: SiteFactors) -> tuple[str, str]:
    if factors.kind == "embedding":
        return f"base_model.model.{site}.lora_embedding_A", f"base_model.model.{site}.lora_embedding_B"
    module = f"base_model.model.{factors.stored_module(site)}"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _stored_names(site: str, factors: SiteFactors) -> tuple[str, str]:
    return factors.a.spec.name, factors.b.spec.name


def _kohya_alpha(factors: SiteFactors) -> str:
    return factors.a.spec.name.removesuffix(".lora_down.weight") + ".alpha"


def _peft_extra(name: str) -> str:
    return f"base_model.model.{name}"


def peft(weights: Literal["safetensors", "bin"] = "safetensors") -> Target:
    """PEFT's folder: adapter_config.json and one weights file that also holds saved modules."""
    return Target("peft", _peft_names, _peft_extra, f"adapter_model.{weights}")


def llava(weights: Literal["safetensors", "bin"] = "bin") -> Target:
    """The official LLaVA trainer's folder, which its evaluation and the official RobustMerge code load."""
    return Target("llava", _peft_names, _peft_extra, f"adapter_model.{weights}", "non_lora_trainables.bin")


def same(weights_file: str, alphas: bool) -> Target:
    """The layout of the inputs: tensors keep the names they have in the first input that holds the site."""
    return Target("same", _stored_names, _peft_extra, weights_file, None, _kohya_alpha if alphas else None)


def model() -> Target:
    """A folded model: the merged factors are added to the base's tensors and written nowhere by themselves."""
    return Target("model", lambda site, factors: ("", ""), _peft_extra, "")

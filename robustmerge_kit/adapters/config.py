"""`adapter_config.json` of PEFT: what decides the scale, what is refused by name, what is ignored with a remark."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..disclosure import UNPRINTABLE
from ..errors import InputError
from .adapter import Initial
from .opened import is_scale, scale_of
from .patterns import Pattern

KNOWN = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "enable_lora",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "merge_weights",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)
"""Keys this program knows: they are used, checked, or have no effect on a merge."""

_VARIANTS = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "mica": "MiCA",
    "enable_lora": "merged linears of early PEFT",
    "megatron_tp": "tensor parallelism",
}
_LONGEST = 4096
_NAMES = "a list of names"
_TYPES: dict[str, tuple[str, ...]] = {
    "bias": ("text",),
    "exclude_modules": ("text", _NAMES),
    "modules_to_save": (_NAMES,),
    "peft_version": ("text",),
    "revision": ("text",),
    "target_modules": ("text", _NAMES),
    "target_parameters": ("text", _NAMES),
    "task_type": ("text",),
}
"""What the keys may hold that are read as text; null is always allowed."""
_MODIFIED_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_INITIAL: dict[str, Initial] = {"pissa": "pissa", "olora": "olora"}
"""What training took out of the base is known from the base alone."""


@dataclass(frozen=True)
class Scaling:
    """How a module's factors are scaled: s = alpha / r, or alpha / sqrt(r) with rsLoRA; r is the tensor's."""

    rank: int | None
    alpha: float
    root: bool
    ranks: Pattern
    alphas: Pattern

    def scale(self, module: str, rank: int) -> float:
        alpha = self.alphas.value(module, self.alpha)
        return scale_of(self.alpha if alpha is None else alpha, rank, root=self.root)

    def announced(self, module: str) -> int | None:
        """The rank the configuration gives a module."""
        value = self.ranks.value(module, self.rank)
        return None if value is None else int(value)


def check_config(config: Mapping[str, Any], where: str, allow: Collection[str]) -> list[str]:
    """Refuse configurations whose factors are not a plain delta of the base; return remarks.

    Raises: InputError naming the feature and what to do about it.
    """
    _check_types(config, where)
    kind = config.get("peft_type")
    if kind is not None and str(kind).upper().rpartition(".")[2] != "LORA":
        raise InputError(
            f"this is {kind}, not LORA", where=where, hint="convert it to LoRA first; only LoRA factors can be merged here"
        )
    for key, name in _VARIANTS.items():
        if config.get(key):
            raise InputError(
                f"{key} is set: {name} has other tensors or mathematics than LoRA",
                where=where,
                hint="merge it into its base with PEFT, then extract a LoRA from the difference",
            )
    if config.get("layer_replication"):
        raise InputError(
            "layers are replicated (layer_replication)", where=where, hint="merge it into its own expanded base with PEFT"
        )
    if config.get("alora_invocation_tokens") is not None:
        raise InputError(
            "is an activated LoRA (alora_invocation_tokens): active only after an invocation sequence",
            where=where,
            hint="it has no meaning as one static delta; leave it out",
        )
    _check_init(config.get("init_lora_weights", True), where, allow)
    unknown = sorted(set(config) - KNOWN - set(_VARIANTS))
    switched = [key for key in unknown if key.startswith("use_") and config[key]]
    if switched:
        raise InputError(
            f"{switched[0]} is set to {config[switched[0]]!r}, which this version does not know",
            where=where,
            hint="merge it into its base with the PEFT that wrote it",
        )
    if unknown:
        version = config.get("peft_version")
        return [f"written by PEFT {version or 'of unknown version'}, keys ignored: {', '.join(unknown)}"]
    return []


def _check_types(config: Mapping[str, Any], where: str) -> None:
    for key, expected in _TYPES.items():
        value = config.get(key)
        names = [value] if isinstance(value, str) else value if isinstance(value, list) and _NAMES in expected else None
        if value is None or (names is not None and all(isinstance(name, str) and len(name) <= _LONGEST for name in names)):
            continue
        raise InputError(f"{key} is {value!r:.80}, not {' or '.join(expected)}", where=where)


def _check_init(init: Any, where: str, allow: Collection[str]) -> None:
    if not isinstance(init, str):
        return
    name = init.lower()
    if name == "mica":
        raise InputError("init_lora_weights is 'mica': MiCA has other mathematics than LoRA", where=where, hint="leave it out")
    known = "known_init" in allow and name in _INITIAL
    if name.startswith(_MODIFIED_INITS) and not known and "modified_init" not in allow:
        way_out = "name the plain base in the recipe as base_model, which makes it exact; or " if name in _INITIAL else ""
        raise InputError(
            f"trained on a modified base (init_lora_weights: {init}), so B A is not a delta of the plain base",
            where=where,
            hint=f"{way_out}save it with PEFT's path_initial_model_for_weight_conversion or merge it into ITS residual base "
            "first; `allow: [modified_init]` overrides",
        )


def read_initial(config: Mapping[str, Any], allow: Collection[str]) -> Initial | None:
    """How training began with a part of the base weight, where that part can be made again; None where B A is the delta."""
    init = config.get("init_lora_weights")
    return _INITIAL.get(init.lower()) if isinstance(init, str) and "modified_init" not in allow else None


def read_scaling(config: Mapping[str, Any], where: str, alpha: float | None, notes: list[str]) -> Scaling:
    """The numbers behind the scales. `alpha`, the recipe's word, wins over `lora_alpha`.

    Raises: InputError for wrong types and for a missing alpha.
    """
    stored = config.get("lora_alpha")
    if stored is not None and not _is_number(stored):
        raise InputError(f"lora_alpha is {stored!r:.80}, not a number", where=where)
    if alpha is None and stored is None:
        raise InputError(
            "lora_alpha is missing; it is not guessed", where=where, hint="give it on the adapter entry: alpha: 16"
        )
    if alpha is not None and stored is not None and alpha != stored:
        notes.append(f"alpha is {alpha:g} by the recipe, {stored:g} in the configuration")
    rank = config.get("r")
    if rank is not None and (not isinstance(rank, int) or not _is_number(rank) or rank < 1):
        raise InputError(f"r is {rank!r:.80}, not a positive whole number", where=where)
    if rank is None:
        notes.append("r is missing in the configuration; ranks are taken from the tensors")
    root = config.get("use_rslora") or False
    if not isinstance(root, bool):
        raise InputError(f"use_rslora is {root!r:.80}, not true or false", where=where)
    return Scaling(
        rank,
        float(alpha if alpha is not None else stored),  # pyright: ignore[reportArgumentType]
        root,
        _pattern(config, "rank_pattern", where),
        _pattern(config, "alpha_pattern", where),
    )


def _pattern(config: Mapping[str, Any], key: str, where: str) -> Pattern:
    values = config.get(key) or {}
    if not isinstance(values, dict) or not all(isinstance(k, str) and _is_number(v) for k, v in values.items()):
        raise InputError(f"{key} is not a map of module patterns to numbers", where=where)
    return Pattern(values, f"{where}: {key}")  # pyright: ignore[reportArgumentType]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_scale(value)


def base_of(config: Mapping[str, Any], notes: list[str]) -> str | None:
    """The base the adapter was trained on, as written there.

    Raises: InputError when it is no single line of text.
    """
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        notes.append("base_model_name_or_path is empty; the base is taken to be that of the other adapters")
        return None
    if UNPRINTABLE.search(base):
        raise InputError(f"base_model_name_or_path holds control characters: {base[:80]!r}")
    return base


def refuse_dora(count: int, where: str) -> None:
    """Refuse weight-decomposed adapters.

    Raises: InputError, always.
    """
    raise InputError(
        f"DoRA ({count} modules) has no exact low-rank sum: its delta depends on the base weights",
        where=where,
        hint="merge it into its base with PEFT and extract a LoRA from the difference, or train without use_dora",
    )

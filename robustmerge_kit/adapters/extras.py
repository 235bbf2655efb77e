"""What a PEFT file holds besides factors: saved modules, biases, rows of token embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..shards import TensorRef
from .adapter import Extra, ExtraKind, SiteFactors
from .keys import Key


def read_extras(
    keys: list[Key],
    tensors: Mapping[str, TensorRef],
    sites: Mapping[str, SiteFactors],
    config: Mapping[str, Any],
    where: str,
    notes: list[str],
) -> dict[str, Extra]:
    """Every tensor that is no factor: one spelling each, the trained value first; what is dropped is named.

    Raises: InputError for a bias of factors that are not there, and for token rows the configuration does not explain.
    """
    saved_modules = [name for name in config.get("modules_to_save") or () if isinstance(name, str)]
    biases = config.get("bias", "none") not in ("none", None)
    spelled: dict[str, list[tuple[int, Key, ExtraKind]]] = {}
    for key in keys:
        if key.leaf == "lora_bias":
            spelled.setdefault(f"{key.module}.lora_B.bias", []).append((0, key, "lora_bias"))
        elif key.leaf == "tokens":
            spelled.setdefault(key.module, []).append((0, key, "tokens"))
        elif key.leaf in ("plain", "saved", "original"):
            name, order = _plain_name(key, sites)
            module = name.rpartition(".")[0]
            is_bias = biases and key.leaf != "saved" and name.endswith(".bias") and not _is_saved(module, saved_modules)
            spelled.setdefault(name, []).append((order, key, "bias" if is_bias else "saved"))
    extras: dict[str, Extra] = {}
    dropped: list[str] = []
    for name, candidates in spelled.items():
        order, key, kind = min(candidates, key=lambda candidate: candidate[0])
        dropped.extend(other.raw for _, other, _ in candidates if other is not key)
        if order == _ORIGINAL:
            dropped.append(key.raw)
        else:
            extras[name] = _extra(name, tensors[key.raw], kind, sites, config, where)
    if dropped:
        notes.append(
            f"{len(dropped)} tensors are untrained copies or second spellings and are not used ({', '.join(dropped[:3])})"
        )
    return extras


_ORIGINAL = 3
_BIAS_OF_B = ".lora_B.bias"
_TOKENS = ".token_adapter.trainable_tokens_delta"


def _extra(
    name: str, ref: TensorRef, kind: ExtraKind, sites: Mapping[str, SiteFactors], config: Mapping[str, Any], where: str
) -> Extra:
    if kind == "lora_bias":
        site = sites.get(name.removesuffix(_BIAS_OF_B))
        if site is None:
            raise InputError(f"{name} belongs to a module without factors", where=where)
        return Extra(ref, kind, scale=site.scale)
    if kind == "tokens":
        return Extra(ref, kind, indices=_token_indices(name.removesuffix(_TOKENS), ref, config, where))
    return Extra(ref, kind)


def _token_indices(module: str, ref: TensorRef, config: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Which rows of an embedding the trained rows replace, in the order of the configuration's list."""
    listed = config.get("trainable_token_indices")
    if isinstance(listed, dict):
        fitting = [value for layer, value in listed.items() if module == layer or module.endswith(f".{layer}")]
        listed = fitting[0] if fitting else None
    if not isinstance(listed, list) or not all(type(index) is int and index >= 0 for index in listed):
        raise InputError(
            f"{ref.spec.name}: trained token rows, but trainable_token_indices does not say which tokens they belong to",
            where=where,
            hint="put back the adapter_config.json that PEFT wrote",
        )
    if len(ref.spec.shape) != 2 or ref.spec.shape[0] != len(listed) or len(set(listed)) != len(listed):
        raise InputError(
            f"{ref.spec.name} is {list(ref.spec.shape)}, but trainable_token_indices lists {len(set(listed))} tokens",
            where=where,
            hint="is this adapter_config.json that of the weights?",
        )
    return tuple(listed)


def _plain_name(key: Key, sites: Mapping[str, SiteFactors]) -> tuple[str, int]:
    """(name of the tensor in the plain model, order of preference among its spellings)."""
    if key.leaf == "saved":
        return key.module, 0
    if key.leaf == "original":
        return key.module, _ORIGINAL
    head, found, tail = key.module.rpartition(".base_layer.")
    if found and head in sites:
        return f"{head}.{tail}", 2
    return key.module, 1


def _is_saved(module: str, saved: list[str]) -> bool:
    """PEFT matches saved modules by the ending of their name; what lies below them is saved with them."""
    parts = module.split(".")
    return any(".".join(parts[: end + 1]).endswith(name) for end in range(len(parts)) for name in saved)

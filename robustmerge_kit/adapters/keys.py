"""Keys of a PEFT-style LoRA file: wrappers, prefixes and adapter names off, so that module and leaf remain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

Leaf = Literal[
    "A", "B", "embedding_A", "embedding_B", "magnitude", "lora_bias", "tokens", "plain", "saved", "original", "unknown"
]

_LEADING = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_ANYWHERE = re.compile(r"(?<![^.])(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_LEAVES = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "embedding_A",
    "lora_embedding_B": "embedding_B",
    "lora_magnitude_vector": "magnitude",
}
_FOREIGN = re.compile(
    r"(lora_|hada_|lokr_|ia3_l|vera_lambda|oft_|boft_|hra_|fourierft|ranknum|dora_scale|randlora_|quant_state|quant_map|absmax|SCB$)"
)


@dataclass(frozen=True)
class Key:
    """A raw key taken apart. `adapter` is the adapter name inside it, if there was one.

    For `plain`, `saved`, `original` and `tokens`, `module` is the full tensor name, leaf included.
    """

    raw: str
    module: str
    leaf: Leaf
    adapter: str | None = None


def parse_keys(names: Collection[str]) -> tuple[list[Key], list[str]]:
    """Take the keys of one file apart; second value: remarks for the user."""
    notes: list[str] = []
    for whole in ("student.", "policy."):
        if names and all(name.startswith(whole) for name in names):
            notes.append(f"every key starts with {whole!r}; it was dropped")
            return _parse(names, whole, notes), notes
    return _parse(names, "", notes), notes


def choose_adapter(keys: list[Key], wanted: str | None, where: str) -> tuple[list[Key], list[str]]:
    """Keep the keys of one adapter.

    Raises: InputError when several adapters are in the file and none is chosen, or the chosen one is not there.
    """
    counted = Counter(key.adapter for key in keys if key.adapter is not None)
    names = sorted(counted)
    if not names:
        if wanted not in (None, "default"):
            raise InputError(f"holds one adapter without a name, not {wanted!r}", where=where, hint="drop adapter_name")
        return keys, []
    if wanted is None and len(names) > 1:
        raise InputError(
            f"holds {len(names)} adapters ({', '.join(names[:12])})", where=where, hint=f"choose one: adapter_name: {names[0]}"
        )
    chosen = wanted or names[0]
    if chosen not in names:
        raise InputError(f"holds no adapter {chosen!r}, but {', '.join(names[:12])}", where=where)
    notes = [
        f"{counted[other]} tensors of the adapter {other!r} in the same file are not used" for other in names if other != chosen
    ]
    return [key for key in keys if key.adapter in (None, chosen)], notes


def _parse(names: Collection[str], whole: str, notes: list[str]) -> list[Key]:
    stripped = {raw: _strip_prefix(_unwrap(raw.removeprefix(whole))) for raw in names}
    without = sum(prefix != "base_model.model." for _, prefix in stripped.values())
    if without:
        short = sum(prefix == "base_model." for _, prefix in stripped.values())
        kind = "base_model. only" if short == without else "no base_model.model. prefix"
        notes.append(f"{without} of {len(stripped)} keys have {kind}; names are taken as they are")
    known = {name for path, _ in stripped.values() if (name := _infix(path)) is not None}
    return [_take_apart(raw, path, known) for raw, (path, _) in stripped.items()]


def _unwrap(name: str) -> str:
    while True:
        shorter = next((name.removeprefix(lead) for lead in _LEADING if name.startswith(lead)), name)
        if shorter == name:
            return _ANYWHERE.sub("", name)
        name = shorter


def _strip_prefix(name: str) -> tuple[str, str]:
    for prefix in ("base_model.model.", "base_model."):
        if name.startswith(prefix):
            return name.removeprefix(prefix), prefix
    return name, ""


def _split_leaf(path: str) -> tuple[str, str, list[str]] | None:
    """(module, leaf component, components after it) of the last LoRA leaf in a path."""
    parts = path.split(".")
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] in _LEAVES:
            return ".".join(parts[:index]), parts[index], parts[index + 1 :]
    return None


def _infix(path: str) -> str | None:
    """The adapter name inside a LoRA key, which tells adapter names from sub-modules in the other keys."""
    split = _split_leaf(path)
    if split is None:
        return None
    _, leaf, rest = split
    if leaf in ("lora_A", "lora_B"):
        return rest[0] if len(rest) == 2 else None
    return rest[0] if rest and rest != ["weight"] else None


def _take_apart(raw: str, path: str, known: set[str]) -> Key:
    split = _split_leaf(path)
    if split is not None:
        module, leaf, rest = split
        adapter = _infix(path)
        tail = rest[1:] if adapter is not None else rest
        if leaf == "lora_B" and tail == ["bias"]:
            return Key(raw, module, "lora_bias", adapter)
        if tail == ["weight"] if leaf in ("lora_A", "lora_B") else tail in ([], ["weight"]):
            return Key(raw, module, _LEAVES[leaf], adapter)  # pyright: ignore[reportArgumentType]
        return Key(raw, path, "unknown", adapter)
    if _FOREIGN.match(path.rpartition(".")[2]) or any(_FOREIGN.match(part) for part in path.split(".")[-3:]):
        return Key(raw, path, "unknown")
    for infix, leaf in (("modules_to_save", "saved"), ("original_module", "original")):
        head, found, tail = path.partition(f".{infix}.")
        if found:
            first, _, rest = tail.partition(".")
            named = leaf == "saved" and rest != "" and (first in known or first == "default")
            return Key(raw, f"{head}.{rest if named else tail}", leaf, first if named else None)  # pyright: ignore
    head, found, tail = path.partition(".token_adapter.")
    if found:
        first, _, adapter = tail.partition(".")
        if first == "trainable_tokens_delta":
            return Key(raw, f"{head}.token_adapter.trainable_tokens_delta", "tokens", adapter or None)
        return Key(raw, f"{head}.{tail}", "original", adapter or None)
    return Key(raw, path, "plain")

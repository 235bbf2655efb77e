"""The layout of the official LLaVA trainer: a PEFT adapter plus `non_lora_trainables.bin` with the projector."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..errors import InputError
from ..folders import NON_LORA
from ..shards import open_tensors
from .adapter import Adapter, Extra
from .opened import Opened, refuse_empty
from .peft import read_peft

MODEL_TYPES = ("llava", "llava_llama", "llava_mistral", "llava_mpt")


def read_llava(opened: Opened) -> Adapter:
    """Read the adapter, then the tensors that were trained without LoRA; theirs are absolute values.

    Raises: InputError as for PEFT, and when the second file is broken or repeats a tensor of the first.
    """
    adapter = replace(read_peft(opened), layout="llava")
    path = next((path for path in opened.beside if path.name == NON_LORA), None)
    if path is None:
        return replace(adapter, notes=(*adapter.notes, f"{NON_LORA} is absent: no projector was trained or saved"))
    shard = open_tensors(path)
    if shard.tensors:
        refuse_empty(shard.tensors, str(path))
    factors = [name for name in shard.tensors if "lora_" in name]
    if factors:
        raise InputError(
            f"holds LoRA factors too ({factors[0]})", where=str(path), hint="save the adapter again with LLaVA's trainer"
        )
    extras = dict(adapter.extras)
    for raw, name in clean_names(shard.tensors).items():
        if name in extras:
            raise InputError(f"tensor {raw} is in {opened.weights.path.name} too", where=str(path))
        extras[name] = Extra(shard.tensors[raw], "saved")
    return replace(adapter, extras=extras, notes=(*adapter.notes, *shard.notes))


def clean_names(names: Collection[str]) -> dict[str, str]:
    """Stored name -> module path of the model, for zero, one or two prefixes, as the official loader cleans them."""
    shorter = {name: name.removeprefix("base_model.") for name in names}
    if any(name.startswith("model.model.") for name in shorter.values()):
        shorter = {raw: name.removeprefix("model.") for raw, name in shorter.items()}
    return {raw: f"model.{name}" if name.startswith("mm_projector.") else name for raw, name in shorter.items()}

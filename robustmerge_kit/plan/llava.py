"""What `format: llava` asks of the inputs and of the output's name, so that LLaVA's own loader takes the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..adapters import Adapter, read_json
from ..errors import PlanError, raise_all
from ..recipe import Recipe
from .targets import Target, llava

MUST_AGREE = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "mm_vision_tower",
    "mm_hidden_size",
    "mm_projector_type",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "mm_patch_merge_type",
)


def llava_target(recipe: Recipe, adapters: Sequence[Adapter]) -> Target:
    """The layout, once every input has a config.json and all of them describe one model.

    Raises: PlanError when one is missing or they disagree, InputError when one is broken.
    """
    configs = {adapter.label: _config(adapter) for adapter in adapters}
    first_label, first = next(iter(configs.items()))
    raise_all(
        PlanError(
            f"config.json disagrees on {key}: {first.get(key)!r} in {first_label}, {config.get(key)!r} in {label}",
            where="format: llava",
            hint="these adapters belong to different models",
        )
        for label, config in configs.items()
        for key in MUST_AGREE
        if config.get(key) != first.get(key)
    )
    return llava(recipe.output.weights or "bin")


def _config(adapter: Adapter) -> dict[str, object]:
    path = adapter.source.folder / "config.json"
    if not path.is_file():
        raise PlanError(
            "format: llava needs the config.json that LLaVA's trainer writes beside the adapter",
            where=adapter.label,
            hint="copy it from the run that trained the adapter, or use format: peft",
        )
    return read_json(path)


def check_output_name(target: Target, out: Path) -> None:
    """LLaVA's loader decides by the folder's name how to load it; a checkpoint's name is that of its parent and its own.

    Raises: PlanError when the official loader would take another branch for that name.
    """
    if target.layout != "llava":
        return
    name = f"{out.parent.name}_{out.name}" if out.name.startswith("checkpoint-") else out.name
    lowered = name.lower()
    if "llava" not in lowered or "lora" not in lowered:
        raise PlanError(
            f"LLaVA's loader recognises its adapters by folder name, and {name!r} lacks 'llava' or 'lora'",
            where="output.path",
            hint="name the folder so that it contains 'llava' and 'lora', e.g. llava-v1.5-7b-lora-merged",
        )
    if "mpt" in lowered:
        raise PlanError(
            f"{name!r} contains 'mpt', so LLaVA's loader would build an MPT model",
            where="output.path",
            hint="rename the folder",
        )

"""How several adapters go together, from headers alone, and what a recipe must say where they differ."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters import Adapter, align
from ..errors import InputError
from ..recipe import Answer

_ABSOLUTE = ("bias", "lora_bias", "tokens")
"""Kinds of extras that have no mean."""

_OWN_LAYOUT = {
    "numbered": "the file does not name its modules",
    "kohya": "its names cannot be turned back into module names",
    "diffusers": "tools that read it expect that layout",
}


def compare(adapters: Sequence[Adapter]) -> list[str]:
    """Remarks on adapters side by side: what keeps them from being merged, bases, renamed modules, missing sites."""
    try:
        aligned, notes = align(adapters)
    except InputError as error:
        return [f"these do not merge: {error.what}"]
    lacking = _lacking(aligned)
    return [*notes, lacking] if lacking else notes


def answers(aligned: Sequence[Adapter]) -> dict[str, Answer]:
    """By key of the recipe: what to write where the default would stop the merge of these adapters, and why."""
    found: dict[str, Answer] = {}
    lacking = _lacking(aligned)
    if lacking:
        found["missing"] = Answer("zero", f"{lacking}; with zero they add nothing there")
    extras = _extras(aligned)
    if extras:
        found["extras"] = extras
    layouts = {adapter.layout for adapter in aligned}
    layout = next(iter(layouts))
    if layouts == {"llava"} and all((adapter.source.folder / "config.json").is_file() for adapter in aligned):
        found["format"] = Answer("llava", "the inputs are LLaVA's own layout, and its code loads the result")
        found["path"] = Answer("llava-lora-merged", 'LLaVA\'s loader needs "llava" and "lora" in the name of the folder')
    elif layout in _OWN_LAYOUT:
        found["format"] = Answer("same", f"the inputs are a {layout} LoRA: {_OWN_LAYOUT[layout]}")
    return found


def _lacking(aligned: Sequence[Adapter]) -> str:
    """Which adapters lack sites of the others; nothing when they all have the same."""
    sites = {site: None for adapter in aligned for site in adapter.sites}
    counts = [(adapter.label, len(sites) - len(adapter.sites)) for adapter in aligned]
    listed = ", ".join(f"{label} lacks {count}" for label, count in counts if count)
    return f"of {len(sites)} sites, {listed}" if listed else ""


def _extras(aligned: Sequence[Adapter]) -> Answer | None:
    """What becomes of tensors beside LoRA: their mean where one exists, else those of the first adapter that has them all."""
    names = {name: None for adapter in aligned for name in adapter.extras}
    if not names or len(aligned) == 1:
        return None
    for name in names:
        why = _no_mean(name, aligned)
        if why:
            complete = next((adapter.label for adapter in aligned if names.keys() == adapter.extras.keys()), None)
            return Answer({"first": complete} if complete else "first", why)
    some = f"{next(iter(names))} and {len(names) - 1} more are" if len(names) > 1 else f"{next(iter(names))} is"
    return Answer("mean", f"{some} in every input beside the LoRA factors, and probably trained differently in each")


def _no_mean(name: str, aligned: Sequence[Adapter]) -> str:
    """Why a tensor cannot be averaged over all adapters; nothing when it can."""
    holders = [adapter for adapter in aligned if name in adapter.extras]
    if len(holders) < len(aligned):
        return f"{name} is only in {', '.join(adapter.label for adapter in holders)}"
    each = [(adapter.label, adapter.extras[name]) for adapter in aligned]
    shapes: dict[tuple[int, ...], str] = {}
    for label, extra in each:
        shapes.setdefault(extra.ref.spec.shape, label)
    if len(shapes) > 1:
        listed = ", ".join(f"{list(shape)} in {label}" for shape, label in shapes.items())
        return f"{name} differs in shape and has no mean: {listed}"
    absolute = next((extra.kind for _, extra in each if extra.kind in _ABSOLUTE), None)
    return f"{name} has no mean: its values ({absolute}) belong to one adapter" if absolute else ""

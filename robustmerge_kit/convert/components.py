"""Components of a diffusion pipeline (`unet`, `text_encoder`, ...) and the prefixes that kohya's tools give their modules."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..adapters.diffusers import COMPONENT

PREFIXES = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "prior": "lora_prior",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}
"""Component, as diffusers names it -> prefix of its modules in kohya's layout."""

FIRST_OF_SEVERAL = "lora_te1"
"""The first text encoder's prefix where there is a second one."""

_COMPONENT_OF = {prefix: component for component, prefix in PREFIXES.items()} | {
    FIRST_OF_SEVERAL: "text_encoder",
    "lora_prior_unet": "prior",
}
_KOHYA_SITE = re.compile(r"(?P<prefix>lora_(?:unet|te\d?|transformer|prior_unet|prior))_(?P<flat>[^.]+)")

_TELLING = {
    "unet": ("down_blocks.", "up_blocks.", "mid_block."),
    "transformer": ("transformer_blocks.", "single_transformer_blocks.", "joint_transformer_blocks."),
    "text_encoder": ("text_model.encoder.",),
}
"""Component -> beginnings of module paths that only its models have."""


def flatten(path: str) -> str:
    """A module path as kohya's tools spell it: `a.b_c` and `a_b.c` become the same name."""
    return path.replace(".", "_")


def split_kohya(site: str) -> tuple[str, str, str]:
    """(component, prefix, flattened path) of a module's name in kohya's layout."""
    match = _KOHYA_SITE.fullmatch(site)
    if match is None:
        return "", "", site
    return _COMPONENT_OF.get(match["prefix"], ""), match["prefix"], match["flat"]


def split_diffusers(site: str) -> tuple[str, str]:
    """(component, module path) of a module's name in diffusers' layouts; no component where the name starts with none."""
    match = COMPONENT.match(site)
    return (site[: match.end() - 1], site[match.end() :]) if match else ("", site)


def is_component(name: str) -> bool:
    """Whether diffusers gives this name to a part of a pipeline."""
    return COMPONENT.fullmatch(f"{name}.") is not None


def guess_component(paths: Collection[str]) -> str:
    """The component whose models alone have such module paths, "" when they do not tell."""
    found = [name for name, starts in _TELLING.items() if all(path.startswith(starts) for path in paths)]
    return found[0] if len(found) == 1 and paths else ""


def kohya_prefix(component: str, components: Collection[str]) -> str:
    """The prefix of a component's modules, beside the other `components` of the file; "" when it has none."""
    if component == "text_encoder" and "text_encoder_2" in components:
        return FIRST_OF_SEVERAL
    return PREFIXES.get(component, "")

"""What the user asks of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Layout = Literal["peft", "llava", "kohya", "diffusers", "same"]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Wish:
    """A conversion, as the command line states it.

    weights: file format, None: the layout's usual one. adapter_name, alpha, rename: as on a recipe's adapter entry.
    base, names: where module names come from, and LLaVA's config.json. base_model: what the result calls its base, None: what
    the adapter says. component, prefix: what the one model's modules are called in diffusers' and kohya's layouts. uniform:
    one rank and one scale for all modules. drop_extras: leave out tensors that the layout has no place for.
    """

    to: Layout = "peft"
    weights: Literal["safetensors", "bin"] | None = None
    adapter_name: str | None = None
    alpha: float | None = None
    rename: Mapping[str, str] = field(default_factory=dict[str, str])
    base: Path | None = None
    names: Path | None = None
    base_model: str | None = None
    component: str | None = None
    prefix: str | None = None
    uniform: bool = False
    drop_extras: bool = False

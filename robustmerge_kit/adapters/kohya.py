"""The layout of kohya's sd-scripts and A1111.

`lora_unet_<name_with_underscores>.lora_down.weight`, `.lora_up.weight` and `.alpha`, a number.
"""

from __future__ import annotations

import re

from ..errors import InputError
from ..shards import read_scalar
from .adapter import Adapter, SiteFactors
from .opened import Opened, dtype_notes, refuse_unpaired, scale_of
from .peft import make_site

KEY = re.compile(
    r"(?P<site>lora_(unet|te\d?|transformer|prior|prior_unet)_[^.]+)\.(?P<leaf>lora_down\.weight|lora_up\.weight|alpha)"
)
PREFIX = re.compile(r"lora_(unet|te\d?|transformer|prior)_")
VARIANT = re.compile(r"lora_[^.]+_lora_(down|up)\.weight")

_OTHERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_mid": "LoCon with a core tensor",
    "diff": "full differences",
}


def read_kohya(opened: Opened) -> Adapter:
    """Read it; a missing or zero alpha means alpha = rank.

    Raises: InputError for LoHa, LoKr, DoRA and other relatives, by name.
    """
    where = opened.where
    leaves: dict[str, dict[str, str]] = {"lora_down.weight": {}, "lora_up.weight": {}, "alpha": {}}
    for raw in opened.tensors:
        match = KEY.fullmatch(raw)
        if match:
            leaves[match["leaf"]][match["site"]] = raw
            continue
        if VARIANT.fullmatch(raw):
            raise InputError(
                f"tensor {raw}: a kohya-looking variant (underscore before lora_down, no alpha) that no loader agrees on",
                where=where,
                hint="convert it with the tool that wrote it",
            )
        name = next((name for mark, name in _OTHERS.items() if mark in raw), "a key this layout does not have")
        raise InputError(f"tensor {raw}: {name}, not LoRA", where=where, hint="convert it to plain LoRA first")
    downs, ups, alphas = leaves["lora_down.weight"], leaves["lora_up.weight"], leaves["alpha"]
    refuse_unpaired(downs, ups, where, ("lora_down", "lora_up"))
    stray = sorted(set(alphas) - set(downs))
    if stray:
        raise InputError(f"{len(stray)} modules have alpha but no factors (first {stray[0]})", where=where)
    sites: dict[str, SiteFactors] = {}
    for name, raw in downs.items():
        site = make_site(name, opened.tensors[raw], opened.tensors[ups[name]], "linear", where)
        stored = read_scalar(opened.tensors[alphas[name]]) if name in alphas else 0.0
        alpha = opened.alpha if opened.alpha is not None else stored or float(site.rank)
        sites[name] = SiteFactors(site.a, site.b, scale_of(alpha, site.rank), site.kind)
    if len(alphas) < len(downs) and opened.alpha is None:
        opened.notes.append(f"{len(downs) - len(alphas)} modules have no alpha; it is taken to be their rank")
    opened.notes.extend(dtype_notes([site.a for site in sites.values()]))
    return Adapter(opened.label, opened.source, "kohya", sites, {}, opened.files, {}, None, tuple(opened.notes))

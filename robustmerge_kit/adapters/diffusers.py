"""The layouts of diffusers: component prefixes (`unet.`, `text_encoder.`), one file, settings in its header.

Three spellings: current (`.lora_A.weight`), 2023 (`.lora.down.weight`), attention processors
(`.processor.to_k_lora.down.weight`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..shards import read_scalar
from .adapter import Adapter, SiteFactors
from .config import Scaling, check_config, read_scaling, refuse_dora
from .opened import Opened, dtype_notes, refuse_unpaired, scale_of
from .peft import make_site

METADATA = "lora_adapter_metadata"
COMPONENT = re.compile(r"(unet|transformer(_\d)?|text_encoder(_\d)?|prior|controlnet|diffusion_model)\.")
OLD = re.compile(r"\.(lora|lora_linear_layer|processor\.\w+_lora)\.(down|up)\.weight$")

_CURRENT_KEY = re.compile(r"(?P<site>.+)\.lora_(?P<half>[AB])(\.(?P<name>[^.]+))?\.weight")
_OLD_KEY = re.compile(r"(?P<site>.+)\.(lora|lora_linear_layer)\.(?P<half>down|up)\.weight")
_PROCESSOR_KEY = re.compile(r"(?P<stem>.+)\.processor\.(?P<leaf>\w+)_lora\.(?P<half>down|up)\.weight")


def read_diffusers(opened: Opened) -> Adapter:
    """Read any of the three spellings; component prefixes stay in the site names. Its `config` is that of each component.

    Raises: InputError when the scale is not known, or for tensors that are no plain LoRA.
    """
    where = opened.where
    halves: dict[str, dict[str, str]] = {"A": {}, "B": {}}
    alphas: dict[str, str] = {}
    current = False
    for raw in opened.tensors:
        name, half = _take_apart(raw, where)
        if half == "alpha":
            alphas[name] = raw
        elif name in halves[half]:
            raise InputError(f"{halves[half][name]} and {raw} are the same factor of {name}", where=where)
        else:
            halves[half][name] = raw
            current |= ".lora_A" in raw
    refuse_unpaired(halves["A"], halves["B"], where)
    settings = read_metadata(opened.weights.metadata, where)
    scalings = _metadata_scalings(settings, opened)
    if current and not scalings and opened.alpha is None and not alphas:
        raise InputError(
            f"has no {METADATA} in its header, so the scale is not known",
            where=where,
            hint="give it on the adapter entry, e.g. alpha: 16 (diffusers itself assumes alpha = rank)",
        )
    sites: dict[str, SiteFactors] = {}
    for name, raw in halves["A"].items():
        site = make_site(name, opened.tensors[raw], opened.tensors[halves["B"][name]], "linear", where)
        stored = read_scalar(opened.tensors[alphas.pop(name)]) if name in alphas else None
        sites[name] = SiteFactors(site.a, site.b, _scale(name, site.rank, stored, scalings, opened), site.kind)
    if alphas:
        raise InputError(f"alpha of {next(iter(alphas))} belongs to a module without factors", where=where)
    ranks = {site.rank for site in sites.values()}
    if len(ranks) > 1 and not scalings and opened.alpha is None and all(site.scale == 1 for site in sites.values()):
        opened.notes.append(f"ranks differ ({sorted(ranks)}) and no alpha is stored; every module is read with scale 1")
    opened.notes.extend(dtype_notes([site.a for site in sites.values()]))
    return Adapter(opened.label, opened.source, "diffusers", sites, settings, opened.files, {}, None, tuple(opened.notes))


def _take_apart(raw: str, where: str) -> tuple[str, str]:
    """(site, "A" | "B" | "alpha") of one key."""
    if "lora_magnitude_vector" in raw or "dora_scale" in raw:
        refuse_dora(1, where)
    if match := _PROCESSOR_KEY.fullmatch(raw):
        return f"{match['stem']}.{match['leaf']}", "A" if match["half"] == "down" else "B"
    if match := _OLD_KEY.fullmatch(raw):
        return match["site"], "A" if match["half"] == "down" else "B"
    if match := _CURRENT_KEY.fullmatch(raw):
        return match["site"], match["half"]
    if raw.endswith(".alpha"):
        stem = raw.removesuffix(".alpha")
        stem = re.sub(r"\.(lora|lora_linear_layer)$", "", stem)
        return re.sub(r"\.processor\.(\w+)_lora$", r".\1", stem), "alpha"
    raise InputError(f"unexpected key {raw}", where=where, hint="a diffusers LoRA holds pairs of factors and alphas only")


def read_metadata(metadata: Mapping[str, str], where: str) -> dict[str, dict[str, Any]]:
    """Component -> its settings, from the JSON in a file's header; keys are `component.key`, or plain in one model's file.

    Raises: InputError when it is not a JSON object.
    """
    text = metadata.get(METADATA)
    if not text:
        return {}
    try:
        flat: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"its header entry {METADATA} is not JSON", where=where) from error
    if not isinstance(flat, dict):
        raise InputError(f"its header entry {METADATA} is not a JSON object", where=where)
    settings: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, dot, rest = str(key).partition(".")
        settings.setdefault(component if dot else "", {})[rest or component] = value
    return settings


def _metadata_scalings(settings: Mapping[str, Mapping[str, Any]], opened: Opened) -> dict[str, Scaling]:
    scalings: dict[str, Scaling] = {}
    for component, config in settings.items():
        where = f"{opened.where}: {METADATA}" + (f" of {component}" if component else "")
        opened.notes.extend(check_config(config, where, set(opened.allow) - {"known_init"}))
        _refuse_dora_flag(config, where)
        scalings[component] = read_scaling(config, where, opened.alpha, opened.notes)
    return scalings


def _refuse_dora_flag(config: Mapping[str, Any], where: str) -> None:
    if config.get("use_dora"):
        refuse_dora(1, where)


def _scale(name: str, rank: int, stored: float | None, scalings: Mapping[str, Scaling], opened: Opened) -> float:
    component, _, module = name.partition(".")
    if component in scalings:
        return scalings[component].scale(module, rank)
    if "" in scalings:
        return scalings[""].scale(name, rank)
    if opened.alpha is not None:
        return scale_of(opened.alpha, rank)
    return scale_of(stored, rank) if stored else 1.0

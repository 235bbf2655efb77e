"""Which layout lies in a folder, and which reader understands it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ..disclosure import UNPRINTABLE
from ..errors import InputError
from ..folders import CONFIG, MODEL_CONFIG, Contents, find_adapter, refuse_by_name
from ..links import refuse_leading_out
from ..shards import Shard, open_tensors
from ..sources import Source
from . import diffusers, kohya, numbered
from .adapter import Adapter, Extra, SiteFactors
from .diffusers import read_diffusers
from .experts import Axes
from .kohya import read_kohya
from .llava import MODEL_TYPES, read_llava
from .mlx import read_mlx
from .numbered import read_numbered
from .opened import Opened, read_json, refuse_empty
from .peft import read_peft

_PEFT_LEAF = re.compile(r"\.lora_(embedding_)?[AB](\.|$)")
_CLONEOFSIMO = re.compile(r"(unet|text_encoder):\d+:(up|down)|<s\d+>")
_NEMO = re.compile(r"(lora_gate_and_up_[AB]|\.adapter_layer\.|lora_kqv_adapter|linear_in\.weight|linear_out\.weight)")


def read_adapter(
    source: Source,
    *,
    label: str,
    adapter_name: str | None = None,
    alpha: float | None = None,
    rename: Mapping[str, str] | None = None,
    allow: Collection[str] = (),
    expert_axes: Axes | None = None,
    expert_layout: Literal["peft", "unsloth"] | None = None,
) -> Adapter:
    """Read an adapter of any known layout, headers only; torch is imported for `.bin` and `.pt` files alone.

    adapter_name: which adapter of a file or folder that holds several. alpha: replaces the stored alpha.
    rename: {from: to} rewrites leading module names. allow: "modified_init" accepts PiSSA-like adapters and takes their B A as
    it is, "known_init" those whose initial factors the base tells, as sites with `initial`, "links" files that are links out of
    the folder; a file that `source` names itself may be one.
    expert_axes, expert_layout: how factors of fused experts lie, where the files do not tell; see experts.py.
    Raises: InputError for everything that is broken, unknown, or not a plain LoRA delta, by name.
    """
    found = _locate(source, adapter_name)
    folder = source.folder / found.child
    if UNPRINTABLE.search(found.child + found.weights):
        name = f"{found.child}/{found.weights}".lstrip("/")
        raise InputError(f"the name {name!r} holds control characters", where=str(source.folder), hint="rename it")
    if "links" not in allow:
        names = (found.config, *found.beside, *found.alternatives, MODEL_CONFIG, "README.md")
        refuse_leading_out(folder, names if source.file else (found.weights, *names), source.folder)
    name = None if found.child and found.child == adapter_name else adapter_name
    read = _read_files if found.weights.endswith(".safetensors") else _read_files.__wrapped__
    experts = expert_axes, expert_layout
    adapter = read(folder, found, _stamps(folder, found), name, alpha, tuple(allow), experts)
    adapter = replace(adapter, label=label, source=replace(source, folder=folder))
    return _rename(adapter, rename) if rename else adapter


def _stamps(folder: Path, found: Contents) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when a file does: identity, size, time of change."""
    stamps: list[tuple[int, int, int] | None] = []
    for name in (found.config, found.weights, *found.beside, *found.alternatives, MODEL_CONFIG, "README.md"):
        try:
            stat = (folder / name).stat() if name else None
        except OSError:
            stat = None
        stamps.append(stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(stamps)


@lru_cache(maxsize=64)
def _read_files(
    folder: Path,
    found: Contents,
    stamps: tuple[tuple[int, int, int] | None, ...],
    adapter_name: str | None,
    alpha: float | None,
    allow: tuple[str, ...],
    experts: tuple[Axes | None, Literal["peft", "unsloth"] | None],
) -> Adapter:
    """The adapter, still without label; remembered while its files stay the same, as many recipes share their inputs."""
    notes = list(found.notes)
    config_path = folder / found.config if found.config else None
    config = read_json(config_path) if config_path else None
    path = folder / found.weights
    shard = open_tensors(path)
    notes.extend(shard.notes)
    notes.extend(_compare_alternatives(shard, [folder / name for name in found.alternatives]))
    refuse_empty(shard.tensors, str(path))
    opened = Opened(
        label="",
        source=Source(str(folder), folder),
        weights=shard,
        config=config,
        config_path=config_path,
        beside=tuple(folder / name for name in found.beside),
        adapter_name=adapter_name,
        alpha=alpha,
        allow=allow,
        expert_axes=experts[0],
        expert_layout=experts[1],
        notes=notes,
    )
    return _read_layout(opened)


def _locate(source: Source, adapter_name: str | None) -> Contents:
    if source.file is None:
        return find_adapter(_list_folder(source.folder), source.reference, adapter_name)
    refuse_by_name(source.file.name, str(source.file))
    names = _list_folder(source.folder)
    if source.file.name.startswith("adapter_model.") and CONFIG in names:
        found = find_adapter(names, source.reference)
        return replace(found, weights=source.file.name, alternatives=())
    return Contents("", CONFIG if CONFIG in names else None, source.file.name)


def _list_folder(folder: Path) -> set[str]:
    """Names in a folder and in its direct sub-folders, the latter only where they are needed to find an adapter."""
    try:
        with os.scandir(folder) as entries:
            top = list(entries)
        names = {entry.name for entry in top if entry.is_file()}
        if CONFIG in names:
            return names
        for entry in top:
            if entry.is_dir():
                with os.scandir(entry.path) as inside:
                    names.update(f"{entry.name}/{child.name}" for child in inside if child.is_file())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=error.filename or str(folder)) from error
    return names


def _compare_alternatives(taken: Shard, others: list[Path]) -> list[str]:
    notes: list[str] = []
    for path in others:
        try:
            differs = set(open_tensors(path).tensors) != set(taken.tensors)
        except InputError as error:
            notes.append(f"{taken.path.name} was taken; {path.name} cannot be opened ({error.what})")
            continue
        if differs:
            notes.append(f"{taken.path.name} was taken; {path.name} beside it has other keys")
    return notes


def _read_layout(opened: Opened) -> Adapter:
    """Detection order: configuration with peft_type, MLX configuration, header metadata, key patterns."""
    config = opened.config
    if config is not None and "peft_type" in config:
        return read_llava(opened) if _is_llava(opened) else read_peft(opened)
    if config is not None and ("fine_tune_type" in config or "lora_parameters" in config):
        return read_mlx(opened)
    if diffusers.METADATA in opened.weights.metadata:
        return read_diffusers(opened)
    names = list(opened.tensors)
    if any(numbered.KEY.fullmatch(name) for name in names):
        return read_numbered(opened)
    if any(_CLONEOFSIMO.match(name) for name in names):
        raise InputError(
            "is a numbered diffusion LoRA of 2022/23", where=opened.where, hint="convert it with the tool that wrote it"
        )
    if any(kohya.PREFIX.match(name) for name in names):
        return read_kohya(opened)
    if any(_NEMO.search(name) for name in names):
        raise InputError(
            f"is a NeMo or Megatron adapter ({_first(names, _NEMO)})", where=opened.where, hint="consolidate it to PEFT first"
        )
    factors = [name for name in names if _PEFT_LEAF.search(name)]
    if any(diffusers.OLD.search(name) for name in names) or (
        factors and all(diffusers.COMPONENT.match(name) for name in factors)
    ):
        return read_diffusers(opened)
    if factors and (config is not None or opened.alpha is not None):
        return read_peft(opened)
    if factors:
        raise InputError(
            f"{CONFIG} is missing, so the scale is not known",
            where=opened.where,
            hint="put it beside the weights, or give alpha on the adapter entry",
        )
    if any(name.endswith((".lora_a", ".lora_b")) for name in names):
        raise InputError(
            "is an MLX adapter without its adapter_config.json", where=opened.where, hint="put it beside the weights"
        )
    raise InputError(
        f"unknown layout; keys are e.g. {', '.join(names[:5])}",
        where=opened.where,
        hint="known are PEFT, LLaVA's original, numbered pairs (w_a_000), kohya, diffusers and MLX",
    )


def _first(names: list[str], pattern: re.Pattern[str]) -> str:
    return next(name for name in names if pattern.search(name))


def _is_llava(opened: Opened) -> bool:
    if opened.beside:
        return True
    path = opened.source.folder / MODEL_CONFIG
    return path.is_file() and read_json(path).get("model_type") in MODEL_TYPES


def _rename(adapter: Adapter, rename: Mapping[str, str]) -> Adapter:
    """Rewrite leading module names; the longest prefix that fits a name wins.

    Raises: InputError when a prefix fits nothing, or two names become one.
    """
    used: set[str] = set()
    longest_first = sorted(rename, key=len, reverse=True)

    def new_name(name: str) -> str:
        for old in longest_first:
            stem = old.removesuffix(".")
            if stem and name != stem and not name.startswith(f"{stem}."):
                continue
            used.add(old)
            rest = name[len(stem) :].removeprefix(".")
            return ".".join(part for part in (rename[old].removesuffix("."), rest) if part)
        return name

    sites: dict[str, SiteFactors] = {}
    extras: dict[str, Extra] = {}
    for name, site in adapter.sites.items():
        if sites.setdefault(new := new_name(name), site) is not site:
            raise InputError(f"two modules become {new}", where=f"{adapter.label}: rename")
    for name, extra in adapter.extras.items():
        if extras.setdefault(new := new_name(name), extra) is not extra:
            raise InputError(f"two tensors become {new}", where=f"{adapter.label}: rename")
    unused = sorted(set(rename) - used)
    if unused:
        some = next(iter(adapter.sites))
        raise InputError(f"no module starts with {unused[0]!r} (a module is {some})", where=f"{adapter.label}: rename")
    return replace(adapter, sites=sites, extras=extras)

"""One function for each layout: parts of an adapter -> the folders, files and tensors that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ..adapters import Adapter, SiteFactors, read_json
from ..adapters.diffusers import METADATA
from ..adapters.llava import MODEL_TYPES
from ..errors import InputError, PlanError, UsageError
from ..folders import CONFIG, DIFFUSERS_WEIGHTS, MODEL_CONFIG
from ..output.config import saved_modules
from ..plan import targets
from ..shards import open_tensors
from .components import flatten, kohya_prefix
from .draft import Draft, Entry, in_order, pair, scalar, stored
from .parts import Part
from .scaling import alpha_of, describes, is_float32, settings, whole
from .wish import Wish

_SETTINGS: dict[str, Any] = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": None,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": None,
    "rank_pattern": {},
    "revision": None,
    "target_modules": None,
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}
"""The settings of a plain LoRA that every version of PEFT and of diffusers understands."""


_KIND_WORDS = {"embedding": "embeddings", "experts": "experts"}


def draft_peft(parts: Sequence[Part], wish: Wish, notes: list[str]) -> list[Draft]:
    """A PEFT folder; one below the other for each component where there are several."""
    _refuse_twins(parts)
    return [_one_peft(part, part.component if len(parts) > 1 else "", wish, notes) for part in parts]


def _one_peft(part: Part, folder: str, wish: Wish, notes: list[str]) -> Draft:
    part = _without_extras(part, wish, notes)
    target = targets.peft(wish.weights or "safetensors")
    if part.extras and part.adapter.layout == "numbered":
        raise _no_place(part, "PEFT", sorted(part.extras))
    config = _peft_config(part, wish)
    entries = _uniform(part, target, config) if wish.uniform else _as_stored(part, target)
    entries += [stored(_extra_name(name, part), extra.ref) for name, extra in part.extras.items()]
    if config["base_model_name_or_path"] is None and not folder:
        notes.append("nothing says what the base is called; --base-model does")
    documents: dict[str, Mapping[str, Any]] = {CONFIG: config}
    if part.adapter.layout == "llava" and (part.adapter.source.folder / MODEL_CONFIG).is_file():
        documents[MODEL_CONFIG] = read_json(part.adapter.source.folder / MODEL_CONFIG)
    return Draft({target.weights: in_order(entries)}, folder, documents=documents)


def draft_llava(parts: Sequence[Part], wish: Wish, notes: list[str]) -> list[Draft]:
    """The folder of the official LLaVA trainer, whose loader knows one rank and one alpha.

    Raises: PlanError when there is more than one model or no config.json, InputError when config.json is not LLaVA's.
    """
    part = _without_extras(_only(parts, "LLaVA's layout"), wish, notes)
    target = targets.llava(wish.weights or "bin")
    odd = sorted(name for name, extra in part.extras.items() if extra.kind != "saved")
    if odd:
        raise _no_place(part, "LLaVA's layout", odd)
    kept = {key: part.config[key] for key in ("fan_in_fan_out", "task_type") if key in part.config}
    config = _SETTINGS | {"task_type": "CAUSAL_LM", **kept} | {"base_model_name_or_path": wish.base_model or part.adapter.base}
    config["target_modules"] = _targets(part)
    _refuse_dora(part, "LLaVA's layout")
    entries = in_order(_uniform(part, target, config))
    extras = in_order([stored(target.extra_name(name), extra.ref) for name, extra in part.extras.items()])
    documents = {CONFIG: config, MODEL_CONFIG: _llava_config(part.adapter, wish)}
    assert target.extras is not None
    return [Draft({target.weights: entries, target.extras: extras}, documents=documents)]


def draft_kohya(parts: Sequence[Part], wish: Wish, notes: list[str], stem: str) -> list[Draft]:
    """One file as kohya's sd-scripts write it, each module with its alpha.

    Raises: PlanError for what the layout has no place for, and where nothing says which model is adapted.
    """
    _only_safetensors(wish, "kohya")
    components = [part.component for part in parts]
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    for part in (_without_extras(part, wish, notes) for part in parts):
        _refuse_special(part, "kohya's layout")
        prefix = wish.prefix or part.prefix or kohya_prefix(part.component, components)
        if not prefix:
            raise _unknown_component(part, "kohya", "or --prefix, e.g. lora_te1")
        for path, factors in part.modules.items():
            name = f"{prefix}_{flatten(path)}"
            if name in seen:
                raise PlanError(f"{seen[name]} and {path} would both be called {name}", where=part.adapter.label)
            seen[name] = path
            alpha = alpha_of(factors.scale, factors.rank)
            entries += pair((f"{name}.lora_down.weight", f"{name}.lora_up.weight"), factors)
            entries.append(scalar(f"{name}.alpha", alpha, "float32" if is_float32(alpha) else "float64"))
    common = [settings(part.modules) for part in parts]
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one_or_dynamic([(each["r"], each["rank_pattern"]) for each in common]),
        "ss_network_alpha": _one_or_dynamic([(each["lora_alpha"], each["alpha_pattern"]) for each in common]),
    }
    return [Draft({f"{stem}.safetensors": in_order(entries)}, metadata=metadata)]


def draft_diffusers(parts: Sequence[Part], wish: Wish, notes: list[str]) -> list[Draft]:
    """One file in diffusers' current spelling, the settings of each component in its header.

    Raises: PlanError for what the layout has no place for, and where nothing says which model is adapted.
    """
    _only_safetensors(wish, "diffusers")
    entries: list[Entry] = []
    metadata: dict[str, Any] = {}
    _refuse_twins(parts)
    for part in (_without_extras(part, wish, notes) for part in parts):
        _refuse_special(part, "diffusers' layout")
        if not part.component:
            raise _unknown_component(part, "diffusers")
        for path, factors in part.modules.items():
            stem = f"{part.component}.{path}"
            entries += pair((f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"), factors)
        config = {key: value for key, value in _peft_config(part, wish).items() if key in _SETTINGS or key == "exclude_modules"}
        metadata |= {f"{part.component}.{key}": value for key, value in sorted(config.items())}
    return [Draft({DIFFUSERS_WEIGHTS: in_order(entries)}, metadata={METADATA: json.dumps(metadata, indent=2)})]


def draft_copy(adapter: Adapter, wish: Wish) -> list[Draft]:
    """Every tensor under its own name and the header's entries as they are; only the file's format may change.

    Raises: UsageError when the wish names something that a copy cannot carry.
    """
    if wish.alpha is not None:
        raise UsageError(
            f"--alpha {wish.alpha:g}: --to same copies the tensors of a {adapter.layout} file as they are",
            hint="name another layout with --to",
        )
    path = next(iter(adapter.sites.values())).a.path
    shard = open_tensors(path)
    suffix = wish.weights or "safetensors"
    entries = [stored(name, ref) for name, ref in shard.tensors.items()]
    metadata = {key: value for key, value in shard.metadata.items() if key != "format"}
    return [Draft({f"{path.stem}.{suffix}": entries}, metadata=metadata)]


# --- factors and settings -----------------------------------------------------------------------------------------------


def _as_stored(part: Part, target: targets.Target) -> list[Entry]:
    entries: list[Entry] = []
    for path, factors in part.modules.items():
        if factors.kind == "experts":
            entries += _experts(part, path, factors)
        else:
            entries += pair(target.factor_names(path, factors), factors)
        if factors.magnitude:
            entries.append(stored(f"base_model.model.{path}.lora_magnitude_vector", factors.magnitude))
    return entries


def _experts(part: Part, path: str, factors: SiteFactors) -> list[Entry]:
    """Fused experts as they are stored."""
    if factors.columns == "stacked":
        raise PlanError(f"{path}: MLX's stacked experts are not written as PEFT's", where=part.adapter.label)
    stem = f"base_model.model.{factors.stored_module(path)}"
    return [stored(f"{stem}.lora_A.weight", factors.a), stored(f"{stem}.lora_B.weight", factors.b)]


def _uniform(part: Part, target: targets.Target, config: dict[str, Any]) -> list[Entry]:
    """Factors with one rank and one alpha, which `config` receives: padded by zeros, and B multiplied where scales differ."""
    _refuse_kinds(part, "one rank and scale for all modules", "experts")
    rank = max(factors.rank for factors in part.modules.values())
    scales = {factors.scale for factors in part.modules.values()}
    alpha = alpha_of(next(iter(scales)), rank) if len(scales) == 1 else float(rank)
    config |= {"r": rank, "lora_alpha": whole(alpha), "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    entries: list[Entry] = []
    for path, factors in part.modules.items():
        factor = factors.scale if len(scales) > 1 else 1.0
        entries += pair(target.factor_names(path, factors), factors, rank, factor)
        if factors.magnitude:
            entries.append(stored(f"base_model.model.{path}.lora_magnitude_vector", factors.magnitude))
    return entries


def _peft_config(part: Part, wish: Wish) -> dict[str, Any]:
    """The stored settings where they tell the truth about the tensors, else rewritten in what differs."""
    config = dict(part.config)
    known = "peft_type" in config or "lora_alpha" in config
    if not known:
        config = _SETTINGS | {"base_model_name_or_path": part.adapter.base}
        config["task_type"] = "CAUSAL_LM" if part.adapter.layout == "mlx" else None
    config.setdefault("peft_type", "LORA")
    config["base_model_name_or_path"] = wish.base_model or config.get("base_model_name_or_path")
    if wish.alpha is not None:
        config["lora_alpha"] = whole(wish.alpha)
    if wish.rename or not describes(config, part.modules):
        config |= settings(part.modules)
    if wish.rename or not config.get("target_modules"):
        config |= {"target_modules": sorted(part.modules), "layers_to_transform": None, "layers_pattern": None}
        config.pop("exclude_modules", None)
    if wish.drop_extras:
        config |= {"modules_to_save": None, "bias": "none", "lora_bias": False}
        config.pop("trainable_token_indices", None)
    elif part.extras and (part.adapter.layout == "llava" or wish.rename or not known):
        config["modules_to_save"] = saved_modules((replace(part.adapter, extras=part.extras),), list(part.extras))
    return config


def _targets(part: Part) -> list[str]:
    """LLaVA's PEFT compares endings of names only: leaf names where the input lists them, else full names."""
    listed = part.config.get("target_modules")
    leaves = sorted({path.rpartition(".")[2] for path in part.modules})
    return leaves if isinstance(listed, list) and set(leaves) <= set(map(str, listed)) else sorted(part.modules)


def _extra_name(name: str, part: Part) -> str:
    """PEFT keeps the bias of an adapted module inside the layer it wraps."""
    module, _, leaf = name.rpartition(".")
    if part.extras[name].kind == "bias" and module in part.modules:
        return f"base_model.model.{module}.base_layer.{leaf}"
    return f"base_model.model.{name}"


def _llava_config(adapter: Adapter, wish: Wish) -> Mapping[str, Any]:
    folder = adapter.source.folder
    base = wish.base if wish.base is None or wish.base.is_dir() else wish.base.parent
    path = next((place / MODEL_CONFIG for place in (folder, base) if place and (place / MODEL_CONFIG).is_file()), None)
    if path is None:
        raise PlanError(
            "LLaVA's loader needs the config.json of its model, and there is none beside the adapter",
            where=adapter.label,
            hint="give --base, the folder of the base model (liuhaotian/llava-v1.5-7b or a copy)",
        )
    config = read_json(path)
    if config.get("model_type") not in MODEL_TYPES:
        raise InputError(
            f"model_type is {config.get('model_type')!r}, which the official LLaVA code does not load",
            where=str(path),
            hint=f"it loads {', '.join(MODEL_TYPES)}",
        )
    return config


# --- what a layout has no place for -------------------------------------------------------------------------------------


def _without_extras(part: Part, wish: Wish, notes: list[str]) -> Part:
    if not wish.drop_extras:
        return part
    notes += [f"dropped {name}" for name in sorted(part.extras)]
    return replace(part, extras={})


def _refuse_special(part: Part, layout: str) -> None:
    _refuse_dora(part, layout)
    _refuse_kinds(part, layout, "embeddings", "experts")
    if part.extras:
        raise _no_place(part, layout, sorted(part.extras))


def _refuse_kinds(part: Part, layout: str, *kinds: str) -> None:
    odd = [path for path, factors in part.modules.items() if _KIND_WORDS.get(factors.kind) in kinds]
    if odd:
        raise PlanError(
            f"{layout}: no place for factors of {' or '.join(kinds)}; {len(odd)} modules, the first: {odd[0]}",
            where=part.adapter.label,
            hint="use --to peft",
        )


def _refuse_dora(part: Part, layout: str) -> None:
    count = sum(factors.magnitude is not None for factors in part.modules.values())
    if count:
        raise PlanError(f"{layout} has no place for DoRA ({count} modules)", where=part.adapter.label, hint="use --to peft")


def _no_place(part: Part, layout: str, names: Sequence[str]) -> PlanError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return PlanError(
        f"{layout} has no place for tensors that are no LoRA factors: {', '.join(names[:3])}{more}",
        where=part.adapter.label,
        hint="--drop-extras leaves them out",
    )


def _only(parts: Sequence[Part], layout: str) -> Part:
    if len(parts) > 1:
        raise PlanError(
            f"{layout} holds one model, the adapter has {len(parts)}: {', '.join(part.component or '?' for part in parts)}",
            where=parts[0].adapter.label,
        )
    return parts[0]


def _refuse_twins(parts: Sequence[Part]) -> None:
    components = [part.component for part in parts]
    for part in parts if len(parts) > 1 else ():
        if not part.component or components.count(part.component) > 1:
            raise InputError(
                f"modules like {next(iter(part.modules))} belong to "
                + (f"a second {part.component}" if part.component else "a component without a name, beside others"),
                where=part.adapter.label,
            )


def _only_safetensors(wish: Wish, layout: Literal["kohya", "diffusers"]) -> None:
    if wish.weights == "bin":
        raise UsageError(f"--weights bin: {layout} files are safetensors, whose header holds their settings")


def _unknown_component(part: Part, layout: str, more: str = "") -> PlanError:
    some = next(iter(part.modules))
    what = f"component {part.component!r}" if part.component else f"modules like {some}"
    return PlanError(
        f"{what}: nothing says what {layout} calls this model",
        where=part.adapter.label,
        hint=f"give --component, e.g. unet or text_encoder {more}".rstrip(),
    )


def _one_or_dynamic(values: Sequence[tuple[float, Mapping[str, float]]]) -> str:
    """One number where all modules share it; sd-scripts writes Dynamic where they do not."""
    alike = len({value for value, _ in values}) == 1 and not any(pattern for _, pattern in values)
    return str(values[0][0]) if alike else "Dynamic"

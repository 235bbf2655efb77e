"""PEFT's layout: `lora_A` and `lora_B` per module, and every other tensor a PEFT file may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..shards import TensorRef
from .adapter import Adapter, SiteFactors, SiteKind
from .config import Scaling, base_of, check_config, read_initial, read_scaling
from .experts import Behind, count_experts, decide_axes, find_parameters, warn_of_unsloth
from .extras import read_extras
from .keys import Key, choose_adapter, parse_keys
from .opened import Opened, check_factor, dtype_notes, refuse_unpaired


def read_peft(opened: Opened) -> Adapter:
    """Read a PEFT adapter; its configuration may be missing when the recipe gives alpha.

    Raises: InputError for everything that is not a plain, whole LoRA.
    """
    where = opened.where
    config: Mapping[str, Any] = opened.config or {}
    config_where = str(opened.config_path or opened.weights.path)
    notes = opened.notes
    notes.extend(check_config(config, config_where, opened.allow))
    if opened.config is None:
        notes.append("adapter_config.json is missing")
    elif "peft_type" not in config:
        notes.append("adapter_config.json has no peft_type; the keys are those of LoRA")
    scaling = read_scaling(config, config_where, opened.alpha, notes)
    keys, remarks = parse_keys(opened.tensors)
    notes.extend(remarks)
    keys, remarks = choose_adapter(keys, opened.adapter_name, where)
    notes.extend(remarks)
    _refuse_unknown(keys, where)
    sites = _read_sites(keys, opened, scaling)
    if not sites:
        shown = ", ".join(list(opened.tensors)[:5])
        raise InputError(f"holds no LoRA factors (keys: {shown})", where=where, hint="this is not a LoRA adapter")
    sites = _with_initial(_with_magnitudes(sites, keys, opened), opened, config_where)
    extras = read_extras(keys, opened.tensors, sites, config, where, notes)
    notes.extend(dtype_notes([ref for site in sites.values() for ref in (site.a, site.b)]))
    base = base_of(config, notes)
    return Adapter(opened.label, opened.source, "peft", sites, config, opened.files, extras, base, tuple(notes))


def _refuse_unknown(keys: list[Key], where: str) -> None:
    unknown = [key.raw for key in keys if key.leaf == "unknown"]
    if not unknown:
        return
    first = unknown[0]
    named = {
        "AdaLoRA": ("lora_E", "ranknum"),
        "LoHa": ("hada_",),
        "LoKr": ("lokr_",),
        "NeMo's grouped experts": ("lora_gate_and_up", "lora_down_A", "lora_down_B"),
        "KaSA": ("lora_diag",),
    }
    for name, marks in named.items():
        if any(mark in raw for raw in unknown for mark in marks):
            raise InputError(f"tensor {first}: this is {name}, not LoRA", where=where, hint="convert it to LoRA first")
    if any(mark in raw for raw in unknown for mark in ("quant_", "absmax", "SCB", "_scales")):
        raise InputError(
            f"tensor {first}: quantised factors are not supported", where=where, hint="save the adapter in 16 or 32 bits"
        )
    raise InputError(
        f"unexpected key {first} ({len(unknown)} such keys)", where=where, hint="a LoRA variant this version does not know"
    )


def _read_sites(keys: list[Key], opened: Opened, scaling: Scaling) -> dict[str, SiteFactors]:
    """Pair the factors by module, find out whose they are, and check that they fit each other.

    Raises: InputError for unpaired or doubled factors, ranks that differ within a pair, grouped convolutions, and fused
        experts that cannot be told apart.
    """
    where, tensors = opened.where, opened.tensors
    halves = _halves(keys, where)
    linear = {module: (tensors[key.raw], tensors[halves["B"][module].raw]) for module, key in halves["A"].items()}
    embedding = {
        module: (tensors[key.raw], tensors[halves["embedding_B"][module].raw]) for module, key in halves["embedding_A"].items()
    }
    both = linear.keys() & embedding.keys()
    if both:
        raise InputError(f"module {min(both)} has both linear and embedding factors", where=where)
    shapes = {module: (a.spec.shape, b.spec.shape) for module, (a, b) in linear.items()}
    parameters = find_parameters(shapes, opened.config or {}, scaling.announced, where)
    sites: dict[str, SiteFactors] = {}
    odd: list[tuple[str, int, int]] = []
    for module, (a, b) in (linear | embedding).items():
        if module in parameters:
            name, factors = _parameter_site(parameters[module], a, b, opened, scaling)
        else:
            name, factors = module, make_site(module, a, b, "linear" if module in linear else "embedding", where)
            announced = scaling.announced(module)
            if announced is not None and announced != factors.rank:
                odd.append((module, factors.rank, announced))
        sites[name] = replace(factors, scale=scaling.scale(name, factors.rank))
    if odd:
        module, real, announced = odd[0]
        opened.notes.append(
            f"{len(odd)} modules have another rank than the configuration says (first {module}: {real}, not {announced}); "
            "the tensors win"
        )
    if any(site.kind == "experts" for site in sites.values()) and opened.expert_layout is None:
        remark = warn_of_unsloth(opened.weights.path.parent, opened.config or {})
        opened.notes.extend([remark] if remark else [])
    return sites


def _halves(keys: list[Key], where: str) -> dict[str, dict[str, Key]]:
    halves: dict[str, dict[str, Key]] = {leaf: {} for leaf in ("A", "B", "embedding_A", "embedding_B")}
    for key in keys:
        if key.leaf in halves:
            twin = halves[key.leaf].setdefault(key.module, key)
            if twin is not key:
                raise InputError(f"{twin.raw} and {key.raw} are the same factor of {key.module}", where=where)
    raws = {leaf: {module: key.raw for module, key in half.items()} for leaf, half in halves.items()}
    refuse_unpaired(raws["A"], raws["B"], where)
    refuse_unpaired(raws["embedding_A"], raws["embedding_B"], where, ("lora_embedding_A", "lora_embedding_B"))
    return halves


def _parameter_site(behind: Behind, a: TensorRef, b: TensorRef, opened: Opened, scaling: Scaling) -> tuple[str, SiteFactors]:
    """The site of a parameter adapted by its name; a plain linear where the parameter is a module's only weight matrix."""
    where = opened.where
    pair = make_site(behind.site, a, b, "linear", where)
    if len(a.spec.shape) != 2:
        raise InputError(f"{behind.site}: {list(a.spec.shape)} is no factor of a parameter", where=where)
    experts = count_experts(behind.site, a.spec.shape[0], scaling.announced(behind.site), where)
    module, _, name = behind.site.rpartition(".")
    if experts == 1 and name == "weight":
        return module, pair
    axes = decide_axes(behind.site, pair.d_in == pair.d_out, opened.config or {}, opened.expert_axes, where)
    return behind.site, replace(
        pair,
        kind="experts",
        experts=experts,
        axes=axes,
        columns=opened.expert_layout or "peft",
        nesting=behind.nesting,
    )


def _with_magnitudes(sites: dict[str, SiteFactors], keys: list[Key], opened: Opened) -> dict[str, SiteFactors]:
    """The sites with the magnitudes of DoRA where the file has them.

    Raises: InputError for a magnitude without factors or of another length, and where use_dora promises one that is absent.
    """
    where = opened.where
    found: dict[str, TensorRef] = {}
    for key in keys:
        if key.leaf != "magnitude":
            continue
        ref = opened.tensors[key.raw]
        site = sites.get(key.module)
        if site is None or site.kind == "experts":
            raise InputError(f"{key.raw}: a magnitude of a module without plain factors", where=where)
        if found.setdefault(key.module, ref) is not ref:
            raise InputError(f"{found[key.module].spec.name} and {key.raw} are the same magnitude", where=where)
        check_factor(ref.spec, where)
        if ref.spec.numel != site.d_out:
            raise InputError(f"{key.raw} is {list(ref.spec.shape)}, but the module has {site.d_out} outputs", where=where)
    config = opened.config or {}
    if config.get("use_dora"):
        bare = [name for name, site in sites.items() if name not in found and site.kind != "experts"]
        if bare:
            raise InputError(
                f"use_dora is set, but {len(bare)} modules have no lora_magnitude_vector (first {bare[0]})",
                where=where,
                hint="the file was saved or cut in part; save it again with PEFT",
            )
    elif found and opened.config is not None:
        opened.notes.append(f"{len(found)} modules have a magnitude although use_dora is not set; they are read as DoRA")
    return {name: replace(site, magnitude=found.get(name)) for name, site in sites.items()}


def make_site(module: str, a: TensorRef, b: TensorRef, kind: SiteKind, where: str) -> SiteFactors:
    """Two factors as one site of scale 1, A (r, d_in), B (d_out, r), after checking dtypes and shapes.

    Raises: InputError when the shapes are not those of a pair.
    """
    for ref in (a, b):
        check_factor(ref.spec, where)
    shape_a, shape_b = a.spec.shape, b.spec.shape
    shapes = f"A {list(shape_a)}, B {list(shape_b)}"
    if len(shape_a) < 2 or len(shape_b) < 2 or (len(shape_a) != len(shape_b) and kind == "linear"):
        raise InputError(f"module {module}: {shapes} are not a pair of factors", where=where)
    if len(shape_a) > 2:
        if kind == "embedding" or any(axis != 1 for axis in shape_b[2:]):
            raise InputError(f"module {module}: {shapes} are not a pair of factors", where=where)
        kind = "conv"
        if shape_b[1] != shape_a[0] and shape_a[0] % shape_b[1] == 0:
            raise InputError(
                f"module {module}: grouped convolution ({shapes}, {shape_a[0] // shape_b[1]} groups) is not supported",
                where=where,
                hint="leave the module out, or merge this adapter into its base first",
            )
    if shape_b[1] != shape_a[0]:
        raise InputError(
            f"module {module}: rank {shape_a[0]} of A against {shape_b[1]} of B ({shapes})",
            where=where,
            hint="the two halves come from different adapters",
        )
    return SiteFactors(a, b, 1.0, kind)


def _with_initial(sites: dict[str, SiteFactors], opened: Opened, where: str) -> dict[str, SiteFactors]:
    """The sites of an adapter whose training began with a part of the base weight.

    Raises: InputError where no training can have begun like that: PEFT knows these inits for linear modules alone, and a scale
        must be positive.
    """
    config = opened.config or {}
    initial = read_initial(config, opened.allow)
    if initial is None:
        return sites
    init = config["init_lora_weights"]
    for name, site in sites.items():
        if site.kind != "linear" or config.get("target_parameters"):
            kind = "target_parameters" if config.get("target_parameters") else site.kind
            raise InputError(f"{name}: init_lora_weights: {init} is defined for linear modules, not for {kind}", where=where)
        if site.scale <= 0:
            raise InputError(f"{name}: init_lora_weights: {init} needs a positive scale, not {site.scale:g}", where=where)
    opened.notes.append(
        f"trained on a modified base (init_lora_weights: {init}); its delta to the plain base is s (B A - B0 A0), of twice the "
        "rank, with B0 A0 made from the base"
    )
    return {name: replace(site, initial=initial) for name, site in sites.items()}

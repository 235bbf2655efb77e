"""PEFT's layout: `lora_A` and `lora_B` per module, and every other tensor a PEFT file may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..shards import TensorRef
from .adapter import Adapter, Extra, ExtraKind, SiteFactors, SiteKind
from .config import Scaling, base_of, check_config, read_scaling, refuse_dora
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
    if any(key.leaf == "magnitude" for key in keys) or config.get("use_dora"):
        refuse_dora(sum(key.leaf == "magnitude" for key in keys) or sum(key.leaf == "A" for key in keys), where)
    _refuse_unknown(keys, where)
    sites = read_sites(keys, opened.tensors, scaling, where, notes)
    if not sites:
        shown = ", ".join(list(opened.tensors)[:5])
        raise InputError(f"holds no LoRA factors (keys: {shown})", where=where, hint="this is not a LoRA adapter")
    extras = _read_extras(keys, opened.tensors, sites, config, where, notes)
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


def read_sites(
    keys: list[Key], tensors: Mapping[str, TensorRef], scaling: Scaling, where: str, notes: list[str]
) -> dict[str, SiteFactors]:
    """Pair the factors by module and check that they fit each other.

    Raises: InputError for unpaired or doubled factors, ranks that differ within a pair, grouped convolutions, nested wrappers.
    """
    halves: dict[str, dict[str, Key]] = {leaf: {} for leaf in ("A", "B", "embedding_A", "embedding_B")}
    for key in keys:
        if key.leaf in halves:
            twin = halves[key.leaf].setdefault(key.module, key)
            if twin is not key:
                raise InputError(f"{twin.raw} and {key.raw} are the same factor of {key.module}", where=where)
    raws = {leaf: {module: key.raw for module, key in half.items()} for leaf, half in halves.items()}
    refuse_unpaired(raws["A"], raws["B"], where)
    refuse_unpaired(raws["embedding_A"], raws["embedding_B"], where, ("lora_embedding_A", "lora_embedding_B"))
    modules = halves["A"] | halves["embedding_A"]
    for module in modules:
        inner = module.removesuffix(".base_layer")
        if inner != module and inner in modules:
            raise InputError(
                f"{inner}: fused expert parameters (target_parameters) are not supported in this version",
                where=where,
                hint="train or convert it with per-expert module names",
            )
    sites: dict[str, SiteFactors] = {}
    odd: list[tuple[str, int, int]] = []
    for module, key in modules.items():
        kind: SiteKind = "linear" if module in halves["A"] else "embedding"
        if module in halves["A"] and module in halves["embedding_A"]:
            raise InputError(f"module {module} has both linear and embedding factors", where=where)
        other = halves["B"][module] if kind == "linear" else halves["embedding_B"][module]
        site = make_site(module, tensors[key.raw], tensors[other.raw], kind, where)
        announced = scaling.announced(module)
        if announced is not None and announced != site.rank:
            odd.append((module, site.rank, announced))
        sites[module] = SiteFactors(site.a, site.b, scaling.scale(module, site.rank), site.kind)
    if odd:
        module, real, announced = odd[0]
        notes.append(
            f"{len(odd)} modules have another rank than the configuration says (first {module}: {real}, not {announced}); "
            "the tensors win"
        )
    return sites


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


def _read_extras(
    keys: list[Key],
    tensors: Mapping[str, TensorRef],
    sites: Mapping[str, SiteFactors],
    config: Mapping[str, Any],
    where: str,
    notes: list[str],
) -> dict[str, Extra]:
    """Every tensor that is no factor: one spelling each, the trained value first; what is dropped is named."""
    saved_modules = [name for name in config.get("modules_to_save") or () if isinstance(name, str)]
    biases = config.get("bias", "none") not in ("none", None)
    spelled: dict[str, list[tuple[int, Key, ExtraKind]]] = {}
    for key in keys:
        if key.leaf == "lora_bias":
            spelled.setdefault(f"{key.module}.lora_B.bias", []).append((0, key, "lora_bias"))
        elif key.leaf == "tokens":
            spelled.setdefault(key.module, []).append((0, key, "tokens"))
        elif key.leaf in ("plain", "saved", "original"):
            name, order = _plain_name(key, sites)
            module = name.rpartition(".")[0]
            is_bias = biases and key.leaf != "saved" and name.endswith(".bias") and not _is_saved(module, saved_modules)
            spelled.setdefault(name, []).append((order, key, "bias" if is_bias else "saved"))
    extras: dict[str, Extra] = {}
    dropped: list[str] = []
    for name, candidates in spelled.items():
        order, key, kind = min(candidates, key=lambda candidate: candidate[0])
        dropped.extend(other.raw for _, other, _ in candidates if other is not key)
        if order == _ORIGINAL:
            dropped.append(key.raw)
        else:
            extras[name] = Extra(tensors[key.raw], kind)
    if dropped:
        notes.append(
            f"{len(dropped)} tensors are untrained copies or second spellings and are not used ({', '.join(dropped[:3])})"
        )
    lost = [
        name for name, extra in extras.items() if extra.kind == "lora_bias" and name.removesuffix(".lora_B.bias") not in sites
    ]
    if lost:
        raise InputError(f"{lost[0]} belongs to a module without factors", where=where)
    return extras


_ORIGINAL = 3


def _plain_name(key: Key, sites: Mapping[str, SiteFactors]) -> tuple[str, int]:
    """(name of the tensor in the plain model, order of preference among its spellings)."""
    if key.leaf == "saved":
        return key.module, 0
    if key.leaf == "original":
        return key.module, _ORIGINAL
    head, found, tail = key.module.rpartition(".base_layer.")
    if found and head in sites:
        return f"{head}.{tail}", 2
    return key.module, 1


def _is_saved(module: str, saved: list[str]) -> bool:
    """PEFT matches saved modules by the ending of their name; what lies below them is saved with them."""
    parts = module.split(".")
    return any(".".join(parts[: end + 1]).endswith(name) for end in range(len(parts)) for name in saved)

"""MLX's layout: `lora_a` (d_in, r) and `lora_b` (r, d_out), a scale that is not divided by the rank.

Experts are stacked, `lora_a` (E, r, d_in) and `lora_b` (E, d_out, r), and belong to a module's `weight` (E, d_out, d_in).
"""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..shards import TensorRef
from .adapter import Adapter, SiteFactors, SiteKind
from .config import refuse_dora
from .opened import Opened, check_factor, dtype_notes, is_scale, refuse_unpaired, scale_of


def read_mlx(opened: Opened) -> Adapter:
    """Read an mlx-lm adapter.

    Raises: InputError for DoRA, full fine-tunes, quantised factors, and a missing scale.
    """
    where, config = opened.where, opened.config or {}
    kind = config.get("fine_tune_type", "lora")
    magnitudes = [raw for raw in opened.tensors if raw.endswith(".m")]
    if kind == "dora" or magnitudes:
        refuse_dora(len(magnitudes), where)
    if kind != "lora":
        raise InputError(f"fine_tune_type is {kind!r}, not lora", where=where, hint="only LoRA adapters can be merged")
    halves: dict[str, dict[str, TensorRef]] = {"lora_a": {}, "lora_b": {}}
    for raw, ref in opened.tensors.items():
        module, _, leaf = raw.rpartition(".")
        if leaf in halves and module:
            halves[leaf][module] = ref
        elif leaf.startswith(("lora_a_", "lora_b_")):
            raise InputError(
                f"tensor {raw}: quantised factors are not supported", where=where, hint="train or save it unquantised"
            )
        else:
            raise InputError(f"unexpected key {raw}", where=where, hint="an MLX LoRA holds lora_a and lora_b only")
    a_names, b_names = ({module: ref.spec.name for module, ref in half.items()} for half in halves.values())
    refuse_unpaired(a_names, b_names, where, ("lora_a", "lora_b"))
    settings: Any = config.get("lora_parameters")
    settings = settings if isinstance(settings, dict) else {}
    stored = settings.get("scale")
    if opened.alpha is None and not (isinstance(stored, int | float) and is_scale(stored)):
        raise InputError(
            "lora_parameters.scale is missing in the MLX configuration; it is not guessed", where=where, hint="give alpha"
        )
    sites: dict[str, SiteFactors] = {}
    odd = 0
    for module, a in halves["lora_a"].items():
        b = halves["lora_b"][module]
        experts = _experts(a, b)
        rank = _rank(module, a, b, where)
        odd += settings.get("rank") not in (None, rank)
        scale = float(stored) if opened.alpha is None else scale_of(opened.alpha, rank)  # pyright: ignore[reportArgumentType]
        if experts:
            sites[f"{module}.weight"] = SiteFactors(a, b, scale, "experts", experts=experts, columns="stacked")
            continue
        last = module.rpartition(".")[2]
        site_kind: SiteKind = "embedding" if "embed" in last or last == "wte" else "linear"
        sites[module] = SiteFactors(a, b, scale, site_kind, transposed=True)
    if odd:
        opened.notes.append(f"{odd} modules have another rank than lora_parameters.rank {settings['rank']}; the tensors win")
    opened.notes.extend(dtype_notes([site.a for site in sites.values()]))
    base = config.get("model")
    base = base if isinstance(base, str) else None
    return Adapter(opened.label, opened.source, "mlx", sites, config, opened.files, {}, base, tuple(opened.notes))


def _experts(a: TensorRef, b: TensorRef) -> int:
    """How many experts the factors are stacks of; 0: they are matrices."""
    shape_a, shape_b = a.spec.shape, b.spec.shape
    return shape_a[0] if len(shape_a) == len(shape_b) == 3 and shape_a[0] == shape_b[0] else 0


def _rank(module: str, a: TensorRef, b: TensorRef, where: str) -> int:
    for ref in (a, b):
        check_factor(ref.spec, where)
    shape_a, shape_b = a.spec.shape, b.spec.shape
    if _experts(a, b) and shape_a[1] == shape_b[2]:
        return shape_a[1]
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[1] != shape_b[0]:
        raise InputError(f"module {module}: lora_a {list(shape_a)} and lora_b {list(shape_b)} are not a pair", where=where)
    return shape_a[1]

"""Bases whose weights are quantised: nothing can be added to them exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import InputError

_MARKS = (
    ("GPTQ or AWQ", (".qweight", ".qzeros", ".g_idx")),
    ("bitsandbytes", (".absmax", ".quant_map", ".SCB", ".weight.absmax", ".weight.quant_map")),
    ("compressed-tensors", (".weight_packed",)),
    ("mxfp4", ("_blocks",)),
    ("fp8", (".weight_scale_inv", ".weight_scale")),
)
_FLOATS = ("float64", "float32", "float16", "bfloat16")


def refuse_quantised(base: Checkpoint, touched: Mapping[str, object], dtype: str | None) -> None:
    """Refuse to change quantised tensors, or to cast a quantised model.

    Raises: InputError with the scheme and the model to take instead, where the configuration tells it.
    """
    scheme = _scheme(base)
    for name in touched:
        ref = base.tensors.get(name)
        if ref is None:
            continue
        if ref.spec.dtype not in _FLOATS:
            _refuse(base, name, scheme or ref.spec.dtype)
        if scheme and _is_marked(base, name):
            _refuse(base, name, scheme)
    if dtype and (odd := [n for n, ref in base.tensors.items() if ref.spec.dtype.startswith("float8")]):
        _refuse(base, odd[0], scheme or "fp8")


def quantisation(base: Checkpoint, site: str) -> str | None:
    """The scheme by which a module's weight is stored, None when it is stored as plain numbers."""
    marked = any(f"{site}{mark}" in base.tensors for _, marks in _MARKS for mark in marks)
    return (_scheme(base) or "unknown scheme") if marked else None


def _is_marked(base: Checkpoint, name: str) -> bool:
    module = name.removesuffix(".weight")
    return any(f"{stem}{mark}" in base.tensors for _, marks in _MARKS for mark in marks for stem in (module, name))


def _scheme(base: Checkpoint) -> str | None:
    for config in base.configs.values():
        settings: Any = config.get("quantization_config")
        if isinstance(settings, dict):
            return str(settings.get("quant_method") or "quantization_config")  # pyright: ignore[reportUnknownArgumentType]
    for scheme, marks in _MARKS:
        if any(name.endswith(marks) for name in base.tensors):
            return scheme
    return None


def _refuse(base: Checkpoint, name: str, scheme: str) -> None:
    original = base.config.get("_name_or_path")
    known = f" ({original})" if isinstance(original, str) and original and original != str(base.folder) else ""
    raise InputError(
        f"the base is quantised ({scheme}): {name} is {base.tensors[name].spec.dtype}",
        where=base.source.reference,
        hint=f"fold into the unquantised model{known}; quantise the result afterwards",
    )

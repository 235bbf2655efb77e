"""An adapter's files, opened but not yet understood: what every layout's reader starts from."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..shards import Shard, TensorRef, TensorSpec, refuse_impostor_file
from ..sources import Source

FACTOR_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Opened:
    """Opened files plus the user's words about them. `config` is None where the layout has none; `notes` are growing."""

    label: str
    source: Source
    weights: Shard
    config: Mapping[str, Any] | None
    config_path: Path | None
    beside: tuple[Path, ...] = ()
    adapter_name: str | None = None
    alpha: float | None = None
    allow: Collection[str] = ()
    notes: list[str] = field(default_factory=list[str])

    @property
    def where(self) -> str:
        return str(self.weights.path)

    @property
    def tensors(self) -> Mapping[str, TensorRef]:
        return self.weights.tensors

    @property
    def files(self) -> tuple[Path, ...]:
        return (*([self.config_path] if self.config_path else []), self.weights.path, *self.beside)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises: InputError for LFS pointers, web pages, anything that is not one JSON object.
    """
    refuse_impostor_file(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"is not JSON (first bytes {text[:40]!r})", where=str(path), hint="download the adapter again"
        ) from error
    if not isinstance(parsed, dict):
        raise InputError(f"is JSON, but a {type(parsed).__name__}, not an object", where=str(path))
    return parsed  # pyright: ignore[reportUnknownVariableType]


def refuse_empty(tensors: Mapping[str, TensorRef], where: str) -> None:
    """Refuse files whose tensors were never gathered.

    Raises: InputError when there is no tensor at all, or one without elements.
    """
    gather = "save it again with gathered weights (stage3_gather_16bit_weights_on_model_save: true)"
    if not tensors:
        raise InputError("holds no tensors; DeepSpeed ZeRO-3 writes such files without gathering", where=where, hint=gather)
    empty = [name for name, ref in tensors.items() if ref.spec.numel == 0]
    if empty:
        raise InputError(
            f"{len(empty)} tensors are empty (first {empty[0]}): the adapter was saved from DeepSpeed ZeRO-3 without gathering",
            where=where,
            hint=gather,
        )


def check_factor(spec: TensorSpec, where: str) -> None:
    """Refuse a factor that is not stored as floating point numbers of at least 16 bits.

    Raises: InputError naming tensor and dtype.
    """
    if spec.dtype not in FACTOR_DTYPES:
        raise InputError(
            f"tensor {spec.name} is {spec.dtype}: quantised factors are not supported",
            where=where,
            hint="save the adapter in float32, float16 or bfloat16",
        )


def refuse_unpaired(
    a: Mapping[str, str], b: Mapping[str, str], where: str, halves: tuple[str, str] = ("lora_A", "lora_B")
) -> None:
    """Refuse modules that have one factor only; `a` and `b` are stored names by module.

    Raises: InputError with count, names of the halves and the first stored name.
    """
    for have, lack, first, second in ((a, b, *halves), (b, a, halves[1], halves[0])):
        lonely = [have[module] for module in have if module not in lack]
        if lonely:
            raise InputError(
                f"{len(lonely)} modules have {first} but no {second} (first {lonely[0]})",
                where=where,
                hint="half of each pair is missing; the file was saved or cut in part",
            )


def dtype_notes(tensors: Collection[TensorRef]) -> list[str]:
    """Remarks about stored precisions that the user should know of."""
    count = sum(ref.spec.dtype == "float64" for ref in tensors)
    return [f"{count} tensors are float64; arithmetic is float32"] if count else []


def scale_of(alpha: float, rank: int, *, root: bool = False) -> float:
    """Alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
    return alpha / (rank**0.5 if root else rank)

"""An adapter's files, opened but not yet understood: what every layout's reader starts from."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..disclosure import UNPRINTABLE
from ..errors import InputError
from ..shards import Shard, TensorRef, TensorSpec, refuse_impostor_file
from ..sources import Source
from .experts import Axes

JSON_LIMIT = 16 << 20
"""Bytes of the largest configuration that is read; the real ones have a few thousand."""
_LARGEST_SCALE = 1e18

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
    expert_axes: Axes | None = None
    expert_layout: Literal["peft", "unsloth"] | None = None
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

    Raises: InputError for LFS pointers, web pages, anything that is not one JSON object of sensible size, and for text that
        holds control characters.
    """
    where = str(path)
    refuse_impostor_file(path)
    try:
        with path.open("rb") as file:
            text = file.read(JSON_LIMIT + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=where) from error
    if len(text) > JSON_LIMIT:
        raise InputError(f"is larger than {JSON_LIMIT >> 20} MiB, which no configuration is", where=where)
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", where=where, hint="download it again") from error
    if not isinstance(parsed, dict):
        raise InputError(f"is JSON, but a {type(parsed).__name__}, not an object", where=where)
    if b"\\" in text or b"\x7f" in text or not text.isascii():
        _refuse_unprintable(parsed, where)
    return parsed  # pyright: ignore[reportUnknownVariableType]


def _refuse_unprintable(document: Any, where: str) -> None:
    """Text that a terminal would obey, or that shows itself as something else, has no place in a configuration."""
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if bad := next((key for key in value if UNPRINTABLE.search(key)), None):
                raise InputError(f"holds a key with control characters: {bad[:80]!r}", where=where)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and UNPRINTABLE.search(re.sub(r"[\n\r\t]", " ", value)):
            raise InputError(f"holds text with control characters: {value[:80]!r}", where=where)


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


def is_scale(number: float) -> bool:
    """Whether a number of any size can take part in a scale: finite, and small enough to leave room in float32."""
    return abs(number) < _LARGEST_SCALE


def scale_of(alpha: float, rank: int, *, root: bool = False) -> float:
    """Alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.

    Raises: InputError for an alpha that is not finite, or too large for float32.
    """
    if not is_scale(alpha):
        raise InputError(f"alpha is {alpha:g}, which is no scale")
    return alpha / (rank**0.5 if root else rank)

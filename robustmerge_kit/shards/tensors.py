"""What is known of stored tensors before a byte of them is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..disclosure import UNPRINTABLE
from ..errors import InputError

if TYPE_CHECKING:
    import torch

LONGEST_NAME = 1000
"""Characters of the longest tensor name that is read; what takes names apart may then be quadratic in them."""

CODES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
CODE_OF = {name: code for code, (name, _) in CODES.items()}
ITEMSIZE = dict(CODES.values())
"""Bytes of one element by dtype name, as torch spells it: float32, bfloat16, ..."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without its numbers. `dtype` is torch's name without the prefix."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZE[self.dtype]


class TensorRef(Protocol):
    """A tensor in a file. `where` names file and tensor for messages."""

    @property
    def spec(self) -> TensorSpec: ...

    @property
    def path(self) -> Path: ...

    @property
    def where(self) -> str: ...

    def read(self) -> torch.Tensor:
        """The tensor in CPU memory of its own.

        Raises: InputError when the file has changed or cannot be read.
        """
        ...

    def read_flat(self, start: int, stop: int, into: torch.Tensor | None = None) -> torch.Tensor:
        """Elements start to stop of the flattened tensor, (stop - start,), in CPU memory of their own.

        into: bytes, (n,) uint8 with room for all of it, that the result may take up instead of memory of its own.

        Raises: InputError when the file has changed or cannot be read.
        """
        ...


@dataclass(frozen=True)
class Shard:
    """One tensor file, opened: references by stored name, header metadata, remarks for the user."""

    path: Path
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()


def check_names(names: Collection[str], where: str) -> None:
    """Refuse tensor names that no module path can have given: empty, endless, with control characters.

    Raises: InputError naming the first.
    """
    if UNPRINTABLE.search("".join(names)) or max(map(len, names), default=1) > LONGEST_NAME or "" in names:
        bad = next(name for name in names if not 0 < len(name) <= LONGEST_NAME or UNPRINTABLE.search(name))
        what = f"{len(bad)} characters long" if len(bad) > LONGEST_NAME else "empty" if not bad else "with control characters"
        raise InputError(f"has a tensor name that is {what}: {bad[:80]!r}", where=where)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    import torch

    rows = tensor if tensor.ndim else tensor.reshape(1)
    return memoryview(rows.view(torch.uint8).numpy().reshape(-1))  # pyright: ignore[reportArgumentType]

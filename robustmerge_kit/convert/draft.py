"""What a conversion will write: every tensor with its origin, every small file, before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..adapters import SiteFactors, check_values
from ..shards import TensorRef, TensorSpec


@dataclass(frozen=True)
class Entry:
    """One tensor of the output.

    ref: the stored tensor it is made of, None for the number `value`. transposed: stored the other way round. factor: what it
    is multiplied by. Where `spec` is larger than what is stored, zeros follow.
    """

    spec: TensorSpec
    ref: TensorRef | None
    transposed: bool = False
    factor: float = 1.0
    value: float = 0.0

    def read(self, rounding: Rounding) -> torch.Tensor:
        """The tensor as it is written; what multiplying costs is added to `rounding`.

        Raises: InputError for NaN and infinity, and when the file cannot be read.
        """
        if self.ref is None:
            return torch.tensor(self.value, dtype=getattr(torch, self.spec.dtype))
        tensor = self.ref.read()
        check_values(self.ref.where, tensor)
        if self.transposed:
            tensor = tensor.T.contiguous()
        if self.factor != 1.0:
            tensor = rounding.multiply(tensor, self.factor)
        if tuple(tensor.shape) != self.spec.shape:
            padded = tensor.new_zeros(self.spec.shape)
            padded[tuple(slice(size) for size in tensor.shape)] = tensor
            tensor = padded
        return tensor


@dataclass
class Rounding:
    """The error that multiplying factors by their scale causes, over all of them."""

    error2: float = 0.0
    norm2: float = 0.0
    tensors: int = 0

    def multiply(self, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        """The tensor times `factor`, rounded once to the tensor's dtype."""
        exact = tensor.double() * factor
        rounded = exact.to(tensor.dtype)
        self.error2 += float((rounded.double() - exact).square().sum())
        self.norm2 += float(exact.square().sum())
        self.tensors += 1
        return rounded

    @property
    def relative(self) -> float:
        """Frobenius norm of the error over that of the factors."""
        return math.sqrt(self.error2 / self.norm2) if self.norm2 > 0 else 0.0


@dataclass(frozen=True)
class Draft:
    """A folder of the output; `folder` is its path below the output folder, "" for that itself.

    files: tensor files. metadata: header entries of safetensors files. documents: JSON files.
    """

    files: Mapping[str, Sequence[Entry]]
    folder: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


def pair(names: tuple[str, str], factors: SiteFactors, rank: int | None = None, factor: float = 1.0) -> tuple[Entry, Entry]:
    """The entries of one module's A and B.

    rank: what both are padded to, None: as stored. factor: what B is multiplied by.
    """
    a_name, b_name = names
    r = rank or factors.rank
    a = TensorSpec(a_name, factors.a.spec.dtype, (r, *factors.kernel))
    ones = factors.b.spec.shape[2:] if not factors.transposed else ()
    b = TensorSpec(b_name, factors.b.spec.dtype, (factors.d_out, r, *ones))
    return Entry(a, factors.a, factors.transposed), Entry(b, factors.b, factors.transposed, factor)


def stored(name: str, ref: TensorRef) -> Entry:
    """A tensor under another name."""
    return Entry(replace(ref.spec, name=name), ref)


def scalar(name: str, value: float, dtype: str) -> Entry:
    """A number."""
    return Entry(TensorSpec(name, dtype, ()), None, value=value)


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Sorted by name, so that A stands beside its B, and each before its module's alpha."""
    return sorted(entries, key=lambda entry: entry.spec.name)

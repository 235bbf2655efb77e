"""An adapter, as every layout is read into it: sites with two factors each, other tensors, configuration, remarks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..shards import TensorRef, read_together
from ..sources import Source
from .experts import NESTED, Axes, Columns, unpack

if TYPE_CHECKING:
    import torch

SiteKind = Literal["linear", "embedding", "conv", "experts"]
Layout = Literal["peft", "llava", "numbered", "kohya", "diffusers", "mlx"]
Initial = Literal["pissa", "olora"]
ExtraKind = Literal["saved", "bias", "lora_bias", "tokens"]


@dataclass(frozen=True)
class SiteFactors:
    """The two factors of one site; delta = scale * B @ A with B (d_out, r) and A (r, d_in).

    kind: `embedding`: d_in is the vocabulary and the delta is the transpose of the weight's. `conv`: d_in is
    in_channels/groups times the kernel, `kernel` keeps those axes for writing. `experts`: the site is a parameter with a
    leading axis of `experts` weights, and so are the factors; the site's name ends with the parameter's.
    transposed: the file holds A as (d_in, r) and B as (r, d_out).
    magnitude: of a DoRA site, whose delta is not s B A alone: the norm of every row of the adapted weight.
    initial: how training took B0 A0 out of the base weight; the delta is then s (B A - B0 A0).
    axes, columns, nesting: of experts; see experts.py. flipped: A and B are read as the transposed B and A, which is the
    same update for a parameter whose axes are the other way round.
    """

    a: TensorRef
    b: TensorRef
    scale: float
    kind: SiteKind = "linear"
    transposed: bool = False
    magnitude: TensorRef | None = None
    initial: Initial | None = None
    experts: int = 1
    axes: Axes = "out_in"
    columns: Columns = "peft"
    nesting: int = 0
    flipped: bool = False

    @cached_property
    def rank(self) -> int:
        shape = self.a.spec.shape
        if self.kind == "experts":
            return shape[1] if self.columns == "stacked" else shape[0] // self.experts
        return shape[-1] if self.transposed else shape[0]

    @cached_property
    def d_in(self) -> int:
        if self.kind == "experts":
            return self._widths[1] if self.flipped else self._widths[0]
        return self.a.spec.shape[0] if self.transposed else math.prod(self.a.spec.shape[1:])

    @cached_property
    def d_out(self) -> int:
        if self.kind == "experts":
            return self._widths[0] if self.flipped else self._widths[1]
        return self.b.spec.shape[-1] if self.transposed else self.b.spec.shape[0]

    @property
    def _widths(self) -> tuple[int, int]:
        """What A reads and what B writes, as stored."""
        return self.a.spec.shape[-1], self.b.spec.shape[1 if self.columns == "stacked" else 0]

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        """Axes of A after the rank, as stored: (d_in,) or (in_channels/groups, k...)."""
        return (self.d_in,) if self.transposed or self.kind == "experts" else self.a.spec.shape[1:]

    @property
    def nbytes(self) -> int:
        return sum(ref.spec.nbytes for ref in self.refs)

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """The tensors of the site."""
        return (self.a, self.b, self.magnitude) if self.magnitude else (self.a, self.b)

    def flip(self) -> SiteFactors:
        """The same experts' update, seen with the other order of the parameter's axes."""
        return replace(self, flipped=not self.flipped, axes="in_out" if self.axes == "out_in" else "out_in")

    def stored_module(self, site: str) -> str:
        """The module path under which PEFT stores the factors of a site of this kind and nesting."""
        return site.rpartition(".")[0] + NESTED * self.nesting if self.kind == "experts" else site

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, d_in) and B (d_out, r) in the stored dtype, scale not applied; of experts (E, r, d_in) and (E, d_out, r)."""
        return self.arrange(self.a.read(), self.b.read())

    def arrange(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `read` gives, of the two tensors as they are stored."""
        if self.kind == "experts":
            a, b = unpack(a, b, self.experts, self.columns)
            return (b.mT.contiguous(), a.mT.contiguous()) if self.flipped else (a, b)
        if self.transposed:
            return a.T.contiguous(), b.T.contiguous()
        if a.ndim == b.ndim == 2:
            return a, b
        return a.reshape(self.rank, self.d_in), b.reshape(self.d_out, self.rank)

    def read_magnitude(self) -> torch.Tensor | None:
        """The norms of a DoRA site (d_out,) in the stored dtype; None for plain factors."""
        return None if self.magnitude is None else self.magnitude.read().reshape(self.d_out)


def read_factors(each: Sequence[SiteFactors]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What `read` gives for each, read together."""
    tensors = iter(read_together([ref for factors in each for ref in (factors.a, factors.b)]))
    return [factors.arrange(next(tensors), next(tensors)) for factors in each]


@dataclass(frozen=True)
class Extra:
    """A tensor that is not a LoRA factor: a saved head or projector, a bias (absolute values), rows of token embeddings.

    scale: of a `lora_bias`, which is added to the base's bias times it. indices: of `tokens`, whose rows replace these rows
    of the embedding.
    """

    ref: TensorRef
    kind: ExtraKind
    scale: float = 1.0
    indices: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Adapter:
    """One input adapter, headers only. Site and extra names are module paths without `base_model.model.`.

    `label` is its name in messages and in the card; `files` are all files its tensors and settings come from;
    `notes` are remarks the user must see once.
    """

    label: str
    source: Source
    layout: Layout
    sites: Mapping[str, SiteFactors]
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    extras: Mapping[str, Extra] = field(default_factory=dict[str, Extra])
    base: str | None = None
    notes: tuple[str, ...] = ()

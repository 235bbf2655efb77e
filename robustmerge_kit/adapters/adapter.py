"""An adapter, as every layout is read into it: sites with two factors each, other tensors, configuration, remarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..shards import TensorRef
from ..sources import Source

if TYPE_CHECKING:
    import torch

SiteKind = Literal["linear", "embedding", "conv"]
Layout = Literal["peft", "llava", "numbered", "kohya", "diffusers", "mlx"]
ExtraKind = Literal["saved", "bias", "lora_bias", "tokens"]


@dataclass(frozen=True)
class SiteFactors:
    """The two factors of one site; delta = scale * B @ A with B (d_out, r) and A (r, d_in).

    kind: `embedding`: d_in is the vocabulary and the delta is the transpose of the weight's. `conv`: d_in is
    in_channels/groups times the kernel, `kernel` keeps those axes for writing.
    transposed: the file holds A as (d_in, r) and B as (r, d_out).
    """

    a: TensorRef
    b: TensorRef
    scale: float
    kind: SiteKind = "linear"
    transposed: bool = False

    @property
    def rank(self) -> int:
        return self.a.spec.shape[-1] if self.transposed else self.a.spec.shape[0]

    @property
    def d_in(self) -> int:
        return self.a.spec.shape[0] if self.transposed else math.prod(self.a.spec.shape[1:])

    @property
    def d_out(self) -> int:
        return self.b.spec.shape[-1] if self.transposed else self.b.spec.shape[0]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Axes of A after the rank, as stored: (d_in,) or (in_channels/groups, k...)."""
        return (self.d_in,) if self.transposed else self.a.spec.shape[1:]

    @property
    def nbytes(self) -> int:
        return self.a.spec.nbytes + self.b.spec.nbytes

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, d_in) and B (d_out, r) in the stored dtype, scale not applied."""
        a, b = self.a.read(), self.b.read()
        if self.transposed:
            return a.T.contiguous(), b.T.contiguous()
        if a.ndim == b.ndim == 2:
            return a, b
        return a.reshape(self.rank, self.d_in), b.reshape(self.d_out, self.rank)


@dataclass(frozen=True)
class Extra:
    """A tensor that is not a LoRA factor: a saved head or projector, a bias (absolute values), rows of token embeddings."""

    ref: TensorRef
    kind: ExtraKind


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

"""Figures of one site, from its two factors; nothing of the size d_out x d_in is ever made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..factors import LowRank, decompose


@dataclass(frozen=True)
class NotFinite:
    """How many values of a tensor are NaN, and how many are infinite."""

    nan: int = 0
    inf: int = 0

    def __bool__(self) -> bool:
        return self.nan + self.inf > 0


@dataclass(frozen=True)
class SiteNumbers:
    """What the values of one site say; delta = scale * B A.

    singular_values: those of delta above its numerical rank, descending. norm: its Frobenius norm.
    effective_rank: see `effective_rank`. zero_rows_a, zero_columns_b: directions in which nothing was learned.
    gauge: ||B||_F / ||A||_F as stored, None when a factor is zero. B G and G^-1 A have the same product for every invertible
    G, so this ratio says how a delta is split, not what it does; 1 is the balanced split, a fresh LoRA starts at 0. Methods
    that work on A and B themselves feel it.
    """

    singular_values: tuple[float, ...]
    norm: float
    effective_rank: float
    zero_rows_a: int
    zero_columns_b: int
    gauge: float | None


def measure(a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], scale: float) -> SiteNumbers:
    """The figures of a site whose values are finite; a zero delta has no singular values, norm 0 and effective rank 0.

    Shapes: a (r, d_in), b (d_out, r), any floating dtype; the arithmetic is float64.
    """
    s = decompose(LowRank(b, a)).s * abs(scale)
    s = s[s > 0]
    norm_a, norm_b = (float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (a, b))
    return SiteNumbers(
        singular_values=tuple(s.tolist()),
        norm=float(torch.linalg.vector_norm(s)),
        effective_rank=effective_rank(s),
        zero_rows_a=int((a == 0).all(1).sum()),
        zero_columns_b=int((b == 0).all(0).sum()),
        gauge=norm_b / norm_a if norm_a and norm_b else None,
    )


def effective_rank(s: Float[Tensor, "k"]) -> float:
    """exp(H(p)), p_i = s_i / sum(s), H(p) = -sum p_i log p_i: k for k equal singular values, 1 for one, 0 for none.

    Shapes: s (k,) positive.
    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    if not s.numel():
        return 0.0
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp())


def not_finite(tensor: Tensor) -> NotFinite:
    """Count NaN and infinity; a tensor of whole numbers has none."""
    if not tensor.numel() or not tensor.is_floating_point():
        return NotFinite()
    low, high = torch.aminmax(tensor)
    if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
        return NotFinite()
    return NotFinite(int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum()))

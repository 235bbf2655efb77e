"""Figures of one site, from its two factors; nothing of the size d_out x d_in is ever made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from ..factors import EPS, nrank, ratio

DEAD = 1e-3
"""Share of a site's largest rank-one term b_i a_i, by norm, up to which a term counts as dead."""


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
    effective_rank: see `effective_rank`. zero_rows_a, zero_columns_b: directions in which nothing was learned. dead: how
    many of the r terms b_i a_i of the product are at most `DEAD` of the largest one, zero ones included: rank that is carried
    along without use.
    gauge: ||B||_F / ||A||_F as stored, None when a factor is zero. B G and G^-1 A have the same product for every invertible
    G, so this ratio says how a delta is split, not what it does; 1 is the balanced split, a fresh LoRA starts at 0. Methods
    that work on A and B themselves feel it.
    """

    singular_values: tuple[float, ...]
    norm: float
    effective_rank: float
    zero_rows_a: int
    zero_columns_b: int
    dead: int
    gauge: float | None


def measure(
    a: Float[torch.Tensor, "*experts r d_in"], b: Float[torch.Tensor, "*experts d_out r"], scale: float
) -> SiteNumbers | None:
    """The figures of a site, None where its values or their squares are not finite; a zero delta has no singular values.

    All of it comes from the two Gram matrices A A^T and B^T B. Of fused experts, which have an axis of their own, norms and
    counts are those of all experts together, singular values are pooled, effective rank and gauge are medians.

    Shapes: a (..., r, d_in), b (..., d_out, r), any floating dtype; the arithmetic is float64.
    """
    if a.ndim > 2:
        return _together([measure(x, y, scale) for x, y in zip(a, b, strict=True)])
    a, b = a.double(), b.double()
    gram_a, gram_b = a @ a.mT, b.mT @ b
    lengths_a, lengths_b = gram_a.diagonal().sqrt(), gram_b.diagonal().sqrt()
    norm_a, norm_b = (float(torch.linalg.vector_norm(x)) for x in (lengths_a, lengths_b))
    size = norm_a * norm_b * max(1.0, abs(scale))
    if not math.isfinite(size * size):
        return None
    terms = lengths_a * lengths_b
    s = _singular_values(gram_a, gram_b, lengths_a) * abs(scale)
    s = s[s > 0]
    return SiteNumbers(
        singular_values=tuple(s.tolist()),
        norm=float(torch.linalg.vector_norm(s)),
        effective_rank=effective_rank(s),
        zero_rows_a=int((lengths_a == 0).sum()),
        zero_columns_b=int((lengths_b == 0).sum()),
        dead=int((terms <= DEAD * terms.max()).sum()),
        gauge=norm_b / norm_a if norm_a and norm_b else None,
    )


def _together(experts: Sequence[SiteNumbers | None]) -> SiteNumbers | None:
    known = [each for each in experts if each]
    if len(known) < len(experts):
        return None
    return SiteNumbers(
        singular_values=tuple(sorted((s for each in known for s in each.singular_values), reverse=True)),
        norm=math.hypot(*(each.norm for each in known)),
        effective_rank=statistics.median(each.effective_rank for each in known),
        zero_rows_a=sum(each.zero_rows_a for each in known),
        zero_columns_b=sum(each.zero_columns_b for each in known),
        dead=sum(each.dead for each in known),
        gauge=statistics.median(gauges) if (gauges := [each.gauge for each in known if each.gauge is not None]) else None,
    )


def _singular_values(
    gram_a: Float[torch.Tensor, "r r"], gram_b: Float[torch.Tensor, "r r"], lengths_a: Float[torch.Tensor, "r"]
) -> Float[torch.Tensor, "k"]:
    """Singular values of B A above its numerical rank, descending.

    With unit rows, A A^T = W W^T and their lengths moved into B, they are the roots of the eigenvalues of W^T B^T B W. Moving
    the lengths makes the result independent of how unequally A and B are scaled. Squaring costs half the digits of float64,
    which leaves 1e-8 of the largest value: less than the rounding of factors stored in float32.
    """
    outer = lengths_a[:, None] * lengths_a
    values, vectors = torch.linalg.eigh(ratio(gram_a, outer))
    root = vectors * values.clamp_min(0).sqrt()
    s = torch.linalg.eigvalsh(root.mT @ (gram_b * outer) @ root).clamp_min(0).sqrt().flip(0)
    return s[: int(nrank(s, s.shape * 2, EPS))]


def effective_rank(s: Float[torch.Tensor, "k"]) -> float:
    """exp(H(p)), p_i = s_i / sum(s), H(p) = -sum p_i log p_i: k for k equal singular values, 1 for one, 0 for none.

    Shapes: s (k,) positive.
    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    if not s.numel():
        return 0.0
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp())


def not_finite(tensor: torch.Tensor) -> NotFinite:
    """Count NaN and infinity; a tensor of whole numbers has none."""
    if not tensor.numel() or not tensor.is_floating_point():
        return NotFinite()
    low, high = torch.aminmax(tensor)
    if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
        return NotFinite()
    return NotFinite(int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum()))

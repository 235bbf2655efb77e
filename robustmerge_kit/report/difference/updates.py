"""Figures of two low-rank updates at one site, from their factors; nothing of the size d_out x d_in is ever made."""

from __future__ import annotations

import torch
from jaxtyping import Float

from ...factors import EPS, FactorStack, Weights, core
from .records import Figures, Ranks

Factors = tuple[Float[torch.Tensor, "*batch r d_in"], Float[torch.Tensor, "*batch d_out r"], float]
"""A, B and scale: the update is scale * B A."""


def compare_updates(a: Factors | None, b: Factors | None) -> tuple[Figures, Ranks]:
    """Two updates D_a and D_b of one shape and any ranks; None is an update that is not there and counts as zero.

    Both are written as cores in common orthonormal bases, without loss: ||D_b - D_a|| is the norm of the difference of the
    cores. So a small difference of large updates keeps its digits, which inner products of factors would lose.

    A rank is the number of singular values above r * 1.2e-7 * s, where r is the rank of the factors and s the update's
    largest singular value; of the difference with r_a + r_b and the larger s of the two, since what is smaller is the rounding
    of their factors. Of fused experts, which have a batch axis, it is the largest rank of all experts.

    Shapes: factors (..., r, d_in) and (..., d_out, r), any floating dtype; the arithmetic is float64.
    """
    present = [each for each in (a, b) if each is not None]
    stack = FactorStack(
        a=tuple(each[0].double() for each in present),
        b=tuple(each[1].double() for each in present),
        coefficients=tuple(each[2] for each in present),
        weights=Weights.of([1.0] * len(present)),
    )
    cores = list(core(stack).cores.unbind(-3))
    zero = torch.zeros_like(cores[0])
    m_a, m_b = (cores.pop(0) if each is not None else zero for each in (a, b))
    difference = m_b - m_a
    s_a, s_b, s_d = (torch.linalg.svdvals(m) for m in (m_a, m_b, difference))
    eps = EPS
    largest = torch.maximum(s_a[..., :1], s_b[..., :1])
    figures = Figures(*(float(x.square().sum()) for x in (s_a, s_b, difference)), inner=float((m_a * m_b).sum()))
    return figures, Ranks(
        a=None if a is None else _rank(s_a, a[0].shape[-2] * eps * s_a[..., :1]),
        b=None if b is None else _rank(s_b, b[0].shape[-2] * eps * s_b[..., :1]),
        difference=_rank(s_d, sum(stack.ranks) * eps * largest),
    )


def _rank(s: Float[torch.Tensor, "*batch k"], threshold: Float[torch.Tensor, "*batch 1"]) -> int:
    return int((s > threshold).sum(-1).max())

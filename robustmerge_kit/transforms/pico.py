"""pico (pre): calm the output directions that many adapters share, then restore the mean norm after the merge.

Paper: arXiv 2604.16826; from the paper, there is no code to compare with.

    [B_1 | .. | B_n] folded = U S V^T;  p_j = S_j^2 / sum S^2;  a_j = 1 / (1 + (n-1) p_j)
    B_t <- B_t + U diag(a - 1) U^T B_t
    after the method: D <- D * mean(m) / ||D||, m_t = ||D_t||_F before the calibration

No parameters. Depends on how each adapter splits its delta between A and B.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float

from ..factors import FactorStack, Spectral, core, ratio
from ..method import Params
from .norms import lengthened
from .step import Pre


class Pico(Params):
    """pico has no settings."""


def calibrate(stack: FactorStack, params: Pico) -> FactorStack:
    """Shrink every B_t along the joint left singular directions by their share of the energy.

    Source: arXiv 2604.16826.
    """
    small = core(stack)
    u, s, _ = torch.linalg.svd(small.r_b, full_matrices=False)
    energy = ratio(s**2, (s**2).sum(-1, keepdim=True))
    change = 1 / (1 + (len(stack) - 1) * energy) - 1
    directions = small.q_b.double() @ u
    b = [x.double() + directions @ (change[..., None] * (directions.mT @ x.double())) for x in stack.b]
    return replace(stack, b=tuple(x.to(stack.dtype) for x in b))


def restore(delta: Spectral, norms: Float[torch.Tensor, "*batch n"]) -> Spectral:
    """Give the merged delta the mean norm the adapters had."""
    return lengthened(delta, norms.mean(-1))


PICO = Pre(name="pico", paper="2604.16826", params=Pico, apply=calibrate, restore=restore, split_dependent=True)

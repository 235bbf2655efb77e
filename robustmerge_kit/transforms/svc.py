"""svc (post): singular value calibration, lower the values of directions that several adapters push together.

Paper: arXiv 2602.05536 (reference code tanganke/fusion_bench 54c9e8c).

    D = U S V^T over its numerical rank; row j of U^T D is a_j, row j of U^T D_t is a_tj
    z_tj = <a_j, a_tj> / ||a_tj||^2                    alpha where a_tj is zero
    S_j <- S_j n / sum_t max(alpha, z_tj)

Parameters: `alpha` 1.0 (0.1 to 1.0). n counts the deltas that are not zero.
Edge cases: alpha above 1 scales even a single adapter by 1/alpha.
Differs: a row counts as zero relative to ||D_t||, where the code has the absolute 1e-12.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import Core, Spectral, ratio
from ..method import Params
from .step import Post


class Svc(Params):
    """Settings of svc."""

    alpha: Annotated[float, Field(gt=0)] = 1.0


def calibrate(delta: Spectral, core: Core, params: Svc) -> Spectral:
    """Divide every singular value by how many times over the adapters supply it.

    Source: arXiv 2602.05536.
    """
    u, v = coordinates(delta, core)
    noise = max(core.sum.shape[-2:]) * core.eps * core.norms
    total = torch.zeros_like(delta.s)
    for t, (b, a) in enumerate(core.pairs):
        rows = (u.mT @ b) @ a.mT
        length = torch.linalg.vector_norm(rows, dim=-1)
        overlap = delta.s * (rows * v.mT).sum(-1)
        known = length > noise[..., t, None]
        z = torch.where(known, ratio(overlap, length**2), params.alpha)
        total = total + z.clamp_min(params.alpha)
    return delta.with_values(delta.s * len(core) / total)


def coordinates(delta: Spectral, core: Core) -> tuple[Float[torch.Tensor, "*batch q_b k"], Float[torch.Tensor, "*batch q_a k"]]:
    """The singular vectors of the delta in the bases of the core; what lies outside them is orthogonal to every D_t."""
    u = delta.u if delta.q_b is core.q_b else core.q_b.double().mT @ (delta.q_b @ delta.u).double()
    v = delta.v if delta.q_a is core.q_a else core.q_a.double().mT @ (delta.q_a @ delta.v).double()
    return u, v


SVC = Post(name="svc", paper="2602.05536", params=Svc, apply=calibrate)

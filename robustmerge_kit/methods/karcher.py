"""Karcher mean: the point on the sphere with the least mean squared angle to the directions of the deltas.

Paper: arXiv 2603.04972. Deltas without their weights; a_t = w_t / sum w; e_t = delta_t / ||delta_t||, zero deltas left out
and the weights of the others brought to sum 1.

    mu = sum a_t e_t / ||.||                           (e_1 where the sum is shorter than tol)
    repeat max_iter times:
        T = sum_t a_t theta_t / sin theta_t (e_t - <mu, e_t> mu)      theta_t = angle(mu, e_t), only where theta_t >= tol
        stop if ||T|| < tol
        mu = cos ||T|| mu + sin ||T|| T / ||T||, normalised
    D = (sum_t a_t ||delta_t||) mu                     the sum over all adapters, zero deltas included

Parameters: `max_iter` 10, `tol` 1e-5.
Edge cases: one adapter gives its delta without its weight. A direction opposite to mu (within tol) has no shortest way to it
and does not pull. Weights that sum to zero are refused.
Differs: mergekit weighs all adapters alike and treats a delta shorter than the absolute 1e-5 as zero, which wipes out small
adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import Weights, ratio
from ..method import Coefficient, Params


class Karcher(Params):
    """Settings of karcher."""

    max_iter: Annotated[int, Field(ge=0, le=100_000)] = 10
    tol: Annotated[float, Field(gt=0, lt=1)] = 1e-5


def merge(gram: Float[torch.Tensor, "*batch n n"], weights: Weights, params: Karcher) -> Float[torch.Tensor, "*batch n"]:
    """Coefficients of the weighted deltas; vectors below are coefficients of the directions e_t.

    Shapes: gram (..., n, n); result (..., n).
    Source: arXiv 2603.04972.
    """
    each = gram.new_tensor(weights.each)
    share = each / (sum(weights.each) or weights.total)
    length = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = ratio(each.sign(), length)
    cosines = (gram * unit[..., :, None] * unit[..., None, :]).clamp(-1, 1)

    def size(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...i,...ij,...j->...", x, cosines, x).clamp_min(0).sqrt()[..., None]

    start = size(share)
    first = torch.eye(len(each)).to(gram)[0]
    mu = torch.where(start < params.tol, first, ratio(share, start))
    moving = torch.ones_like(start, dtype=torch.bool)
    for _ in range(params.max_iter):
        cos = (cosines @ mu[..., None])[..., 0].clamp(-1, 1)
        theta = cos.acos()
        pulls = (theta >= params.tol) & (theta <= math.pi - params.tol)
        pull = torch.where(pulls, share * ratio(theta, theta.sin()), 0.0)
        tangent = pull - (pull * cos).sum(-1, keepdim=True) * mu
        step = size(tangent)
        moving = moving & (step >= params.tol)
        if not bool(moving.any()):
            break
        moved = step.cos() * mu + step.sin() * ratio(tangent, step)
        mu = torch.where(moving, ratio(moved, size(moved)), mu)
    total = (each / weights.total * length / each.abs()).sum(-1, keepdim=True)
    return total * mu * unit


def refuse_cancelling(params: Karcher, weights: Sequence[float]) -> str | None:
    """Why weights that cancel have no mean, or None."""
    if abs(sum(weights)) < 1e-8 * sum(map(abs, weights)):
        return f"the weights {', '.join(f'{w:g}' for w in weights)} sum to zero and have no mean; change one of them"
    return None


METHODS = (Coefficient(name="karcher", paper="2603.04972", params=Karcher, merge=merge, check=refuse_cancelling),)

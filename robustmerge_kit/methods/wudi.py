"""WUDI: the delta that disturbs the input space of every adapter least; swudi does so softly, direction by direction.

Papers: arXiv 2503.08099 (wudi), arXiv 2505.19892 family (swudi; code WalkerWorldPeace/MLLMerging 5f8a458).

    G_t = D_t^T D_t / ||D_t||^2
    wudi    the minimiser of sum_t ||(D - D_t) D_t^T||^2 / ||D_t||^2:
            D = gain * (sum D_t G_t) (sum G_t)^+
    swudi   sum G_t = V diag(e) V^T, e at least 1e-8;  E = sum D_t G_t;  D_0 = sum D_t, mean D_t or 0
            f = 1 - exp(-T e) or 1 on the K largest e, 0 elsewhere
            D = gain * (D_0 - D_0 V diag(f) V^T + E V diag(f / e) V^T)
            K = max(1, floor(dim * keep_fraction + 0.999)), with `adaptive` ceil((sum sqrt e)^2 / sum e) within [1, dim]

Parameters: both: `gain` 1. swudi: `filter` (exponential; none with adaptive), `exp_time` T 300, `keep_fraction` 0.65 (0.85
is used for language models), `adaptive` false, `init` (sum | mean | zero; with sum a gain of about 1/n is usual).
Edge cases: the pseudo-inverse stops at the numerical rank, judged on the square roots of the eigenvalues. wudi is the
identity for one adapter and for identical ones; swudi with init zero does not restore what it cuts off.
Known weakness: wudi gives every adapter's own inputs its own outputs at any price. The price is low while the ranks add up to
much less than d_in: on adapters of GPT-2 and Gemma 3 the result is 0.9 to 1.0 times as large as their sum. It is high where
inputs nearly coincide, or the ranks fill d_in: in the quick start (4 adapters of rank 16, d_in 64 and 128, sum G_t with a
condition of 2e7) the result is 12 times as large as the sum and reads 8.9 % of the digits, 19.6 % with gain 1/4, where swudi
with gain 1/4 reads 52.6 %, linear 55.7 % and chance 10 % (recipes/methods/wudi.yaml, then recipes/quickstart/evaluate.py).
The published procedure reads 38.4 % there, and the plain sum, with which it begins, 38.3 %. Where `rmkit analyze` shows a
merge several times as large as the updates, take swudi.
Differs: wudi's published procedure is 300 Adam steps of size 1e-5 from the sum; it stays within 4 % of the plain sum where
the minimiser is 150 % away, so published numbers do not transfer. swudi's dim is the rank of all A together, not d_in: with
d_in the truncation never bites on low-rank deltas and zero eigenvalues disturb K.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import Core, Weights, nrank, ratio, svd
from ..method import Equivariant, Params


class Wudi(Params):
    """Settings of wudi."""

    gain: float = 1.0


class SoftWudi(Params):
    """Settings of swudi."""

    filter: Literal["exponential", "none"] | None = None
    exp_time: Annotated[float, Field(gt=0)] = 300.0
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 0.65
    adaptive: bool = False
    init: Literal["sum", "mean", "zero"] = "sum"
    gain: float = 1.0


def merge(core: Core, weights: Weights, params: Wudi) -> Float[torch.Tensor, "*batch q_b q_a"]:
    """(sum M_t G_t)(sum G_t)^+ by way of the SVD of the matrix whose Gram matrix is sum G_t.

    Source: arXiv 2503.08099, equation of the loss.
    """
    left, inputs = _inputs(core)
    w, s, v = svd(inputs, core.eps)
    inverse = ratio(torch.ones_like(s), s)
    return params.gain * (left @ (w * inverse[..., None, :])) @ v.mT


def merge_soft(core: Core, weights: Weights, params: SoftWudi) -> Float[torch.Tensor, "*batch q_b q_a"]:
    """The closed form along the K strongest input directions, blended with a plain start elsewhere.

    Source: WalkerWorldPeace/MLLMerging, swudi_merge and aswudi_merge.
    """
    left, inputs = _inputs(core)
    w, s, vh = torch.linalg.svd(inputs, full_matrices=False)
    e = (s**2).clamp_min(1e-8)
    place = torch.arange(e.shape[-1], device=e.device)
    dim = _input_rank(core)[..., None]
    if params.adaptive:
        known = torch.where(place < dim, e, 0.0)
        k = ratio(known.sqrt().sum(-1, keepdim=True) ** 2, known.sum(-1, keepdim=True)).ceil()
    else:
        k = (dim * params.keep_fraction + 0.999).floor()
    soft = params.filter == "exponential" or (params.filter is None and not params.adaptive)
    f = torch.where(place < k.clamp_min(1).clamp(max=dim), 1 - torch.exp(-e * params.exp_time) if soft else 1.0, 0.0)
    target = ((left @ w) * (s * f / e)[..., None, :]) @ vh
    if params.init == "zero":
        return params.gain * target
    start = core.sum if params.init == "sum" else core.sum / len(core)
    return params.gain * (start - ((start @ vh.mT) * f[..., None, :]) @ vh + target)


def _inputs(core: Core) -> tuple[torch.Tensor, torch.Tensor]:
    """L and X with sum M_t G_t = L X and sum G_t = X^T X: X_t = S_t V_t^T / ||M_t||, L_t = U_t S_t^2 / ||M_t||."""
    lefts: list[torch.Tensor] = []
    rights: list[torch.Tensor] = []
    for u, s, v in core.svds:
        share = ratio(s, torch.linalg.vector_norm(s, dim=-1, keepdim=True))
        lefts.append(u * (share * s)[..., None, :])
        rights.append((v * share[..., None, :]).mT)
    return torch.cat(lefts, -1), torch.cat(rights, -2)


def _input_rank(core: Core) -> torch.Tensor:
    """Numerical rank of [A_1; ..; A_n]; rows of length 1, so that no adapter's split between A and B decides it."""
    length = torch.linalg.vector_norm(core.r_a, dim=-2, keepdim=True)
    values = torch.linalg.svdvals(core.r_a / torch.where(length > 0, length, 1.0))
    return nrank(values, core.r_a.shape[-2:], core.eps)


METHODS = (
    Equivariant(name="wudi", paper="2503.08099", params=Wudi, merge=merge),
    Equivariant(name="swudi", paper="2505.19892", params=SoftWudi, merge=merge_soft),
)

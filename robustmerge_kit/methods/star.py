"""STAR: cut the noise off every adapter's spectrum, restore its nuclear norm, then average.

Paper: NAACL 2025 (reference code IBM/STAR e6bfcf7).

    D_t = U_t S_t V_t^T, K_t = #{j : S_1 + .. + S_j < eta/100 sum S} + 1, at most its rank
    D = gain/n * sum_t (sum S / sum of the K_t kept) U_t diag(S_1 .. S_K_t) V_t^T

Parameters: `eta` 40 (percent of the nuclear norm), `gain` 1.
Edge cases: eta 100 is the mean of the deltas. Zero deltas count in n.
Differs: nothing known.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import Core, Weights, ratio
from ..method import Equivariant, Params


class Star(Params):
    """Settings of star."""

    eta: Annotated[float, Field(gt=0, le=100)] = 40.0
    gain: float = 1.0


def merge(core: Core, weights: Weights, params: Star) -> Float[torch.Tensor, "*batch q_b q_a"]:
    """Mean of the truncated deltas, each with the nuclear norm it had.

    Source: STAR, NAACL 2025, equation 3.
    """
    u, s, v = (torch.cat(each, -1) for each in zip(*((u, _truncated(s, params.eta), v) for u, s, v in core.svds), strict=True))
    return params.gain / weights.count * (u * s[..., None, :]) @ v.mT


def _truncated(s: torch.Tensor, eta: float) -> torch.Tensor:
    cumulated = s.cumsum(-1)
    total = cumulated[..., -1:]
    kept = (cumulated < eta / 100 * total).sum(-1, keepdim=True) + 1
    short = torch.where(torch.arange(s.shape[-1], device=s.device) < kept, s, 0.0)
    return short * ratio(total, short.sum(-1, keepdim=True))


METHODS = (Equivariant(name="star", paper="NAACL 2025 (STAR)", params=Star, merge=merge),)

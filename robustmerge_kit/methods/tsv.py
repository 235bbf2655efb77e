"""TSV-Merge: the singular vectors of all adapters side by side, made orthogonal to each other.

Paper: arXiv 2412.00081 (reference code AntoAndGar/task_singular_vectors a6c9718).

    D_t = U_t S_t V_t^T                                the top k_t values, k_t = min(numerical rank, rank_per_adapter)
    D = gain * polar([U_1 | .. | U_n]) diag(S_1, .., S_n) polar([V_1 | .. | V_n])^T

polar(X) = U V^T over the numerical rank of X = U S V^T. One adapter, and n identical ones, give the delta itself.

Parameters: `rank_per_adapter` (default: all of its rank), `gain` 1.
Differs: the code keeps int(min(d_out, d_in) / n) vectors per adapter, meant for full fine-tunes; on a delta of rank r those
beyond r are an arbitrary completion that changes 45 to 59 % of the result. With equal ranks in the core it keeps r as we do.
Its polar factor is unstable for duplicated adapters; ours stops at the numerical rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import Core, Weights, polar
from ..method import Equivariant, Params


class TsvMerge(Params):
    """Settings of tsv_m."""

    rank_per_adapter: Annotated[int, Field(ge=1)] | None = None
    gain: float = 1.0


def merge(core: Core, weights: Weights, params: TsvMerge) -> Float[torch.Tensor, "*batch q_b q_a"]:
    """polar([U_t]) diag([S_t]) polar([V_t])^T; vectors beyond an adapter's numerical rank are zero columns and add nothing.

    Source: arXiv 2412.00081, section 4.
    """
    k = params.rank_per_adapter
    u, s, v = (torch.cat([x[..., :k] for x in each], -1) for each in zip(*core.svds, strict=True))
    return params.gain * (polar(u, core.eps) * s[..., None, :]) @ polar(v, core.eps).mT


def rank(ranks: Sequence[int], params: TsvMerge) -> int:
    """Sum of what is kept of every adapter."""
    return sum(min(r, params.rank_per_adapter or r) for r in ranks)


METHODS = (Equivariant(name="tsv_m", paper="2412.00081", params=TsvMerge, merge=merge, rank=rank),)

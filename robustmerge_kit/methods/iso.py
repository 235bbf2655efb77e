"""Isotropic merging: the directions of the sum with one common strength; iso_cts adds directions of single adapters.

Paper: arXiv 2502.04959 (reference code danielm1405/iso-merging d34010a).

    iso_c     sum_t D_t = U S V^T over its numerical rank k
              D = gain * mean(S_1 .. S_k) U V^T
    iso_cts   k directions in all; p = round((k - int(k f)) / n) of every adapter (half to even), k_c = k - n p common ones
              U_c, S_c, V_c = the top k_c of the sum
              U_t, S_t, V_t = the top p of D_t - U_c U_c^T D_t
              D = gain * mean(all S) * polar([U_c | U_1 | ..]) polar([V_c | V_1 | ..])^T

Parameters: iso_c: `mean_over` (rank; full divides the sum of S by min(d_out, d_in) as the code does), `gain` 1.
iso_cts: `common_fraction` f (0.8), `rank` k (default: numerical rank of the sum), `directions_per_adapter` p, `gain` 1.
n counts the deltas that are not zero.
Edge cases: the result is flat, so cutting its rank afterwards keeps arbitrary directions; choose `rank` here instead. One
adapter is flattened too. p = 0 makes iso_cts iso_c. Where an adapter has fewer than p directions outside the common ones, the
mean is over those present. Where p leaves no common direction because the sum has a small rank, p is lowered until one is left.
Differs: the code also fills the null space of a low-rank sum with arbitrary orthonormal directions, 45 to 87 % of its
result; published gains must be tuned again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import Core, Weights, polar, svd
from ..method import Equivariant, Params


class IsoC(Params):
    """Settings of iso_c."""

    mean_over: Literal["rank", "full"] = "rank"
    gain: float = 1.0


class IsoCTS(Params):
    """Settings of iso_cts."""

    common_fraction: Annotated[float, Field(ge=0, le=1)] = 0.8
    rank: Annotated[int, Field(ge=1)] | None = None
    directions_per_adapter: Annotated[int, Field(ge=0)] | None = None
    gain: float = 1.0

    def split(self, k: int, n: int) -> tuple[int, int]:
        """(p, k_c): directions of each of n adapters and common ones, of k in all."""
        p = self.directions_per_adapter
        p = round((k - int(k * self.common_fraction)) / n) if p is None else p
        return p, k - n * p


def merge_common(core: Core, weights: Weights, params: IsoC) -> Float[torch.Tensor, "*batch q_b q_a"]:
    """mean(S) U V^T of the sum; zero for a zero sum.

    Source: arXiv 2502.04959, Iso-C.
    """
    u, s, v = svd(core.sum, core.eps)
    count = (s > 0).sum(-1).clamp_min(1) if params.mean_over == "rank" else min(core.shape)
    return params.gain * (s.sum(-1) / count)[..., None, None] * (u @ v.mT)


def merge_specific(core: Core, weights: Weights, params: IsoCTS) -> Float[torch.Tensor, "*batch q_b q_a"]:
    """Common and specific directions with one strength, each site of a batch by itself since their numbers differ.

    Source: arXiv 2502.04959, Iso-CTS.
    """
    merged = torch.stack([_specific(site, params) for site in core.sites()])
    return merged.reshape(core.sum.shape)


def _specific(core: Core, params: IsoCTS) -> torch.Tensor:
    u, s, v = svd(core.sum, core.eps)
    k = min(params.rank or int((s > 0).sum()), *core.sum.shape)
    if not k:
        return torch.zeros_like(core.sum)
    p, common = params.split(k, len(core))
    if common < 1:
        p = (k - 1) // len(core)
        common = k - len(core) * p
    parts = [(u[:, :common], s[:common], v[:, :common])]
    for u_t, s_t, v_t in core.svds:
        outside = u_t - parts[0][0] @ (parts[0][0].mT @ u_t)
        left, values, right = torch.linalg.svd(outside * s_t, full_matrices=False)
        # What the projection removes leaves rounding noise, which only the size of the delta itself tells from a direction.
        kept = min(p, int((values > max(core.sum.shape) * core.eps * s_t[0]).sum()))
        parts.append((left[:, :kept], values[:kept], v_t @ right.mT[:, :kept]))
    u, s, v = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    present = s[s > 0]
    strength = params.gain * present.mean() if len(present) else 0.0
    return strength * polar(u, core.eps) @ polar(v, core.eps).mT


def refuse_no_common(params: IsoCTS, weights: Sequence[float]) -> str | None:
    """Why a rank leaves no room for a common direction, or None."""
    if params.rank is None:
        return None
    n = max(1, sum(w != 0 for w in weights))
    p, common = params.split(params.rank, n)
    if common >= 1:
        return None
    return f"rank {params.rank} minus {n} adapters x {p} directions leaves no common direction; raise rank or lower p"


def rank(ranks: Sequence[int], params: IsoCTS) -> int:
    """The rank asked for, at most the sum."""
    return min(params.rank or sum(ranks), sum(ranks))


METHODS = (
    Equivariant(name="iso_c", paper="2502.04959", params=IsoC, merge=merge_common, flat_spectrum=True),
    Equivariant(
        name="iso_cts",
        paper="2502.04959",
        params=IsoCTS,
        merge=merge_specific,
        rank=rank,
        check=refuse_no_common,
        flat_spectrum=True,
    ),
)

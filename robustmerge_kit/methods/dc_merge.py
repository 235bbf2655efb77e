"""DC-Merge: smooth every spectrum, then let the adapters agree inside a common cover space.

Paper: arXiv 2603.06242 (reference code Tobeginwith/DC-Merge 3c443e4).

    D_t = U_t S_t V_t^T over its numerical rank r'_t, R' = sum r'_t
    e_t    mean: all values become mean(S_t); linear: sum(S_t) times linspace(min(rho, S_1 / S_r'), 1, r'_t) brought to sum 1
    P = polar([U_1 | .. | U_n]), Q = polar([V_1 | .. | V_n])
    C_t    = P^T U_t diag(e_t) V_t^T Q, R' x R'; kept where |c| >= the k-th largest, k = max(1, int(keep_fraction R'^2)),
             ties (to 1e-9) included
    C      = mean of the kept entries whose sign is that of their sum over t (0 where the sum is 0);
             blocks between different adapters are set to 0
    D      = gain * P C Q^T

Parameters: `smoothing` (mean | linear), `rho` 5, `keep_fraction` 0.001, `keep_per_adapter` (entries kept of every C_t
instead: a number, or `r` for its own r'_t), `gain` 1 (2.0 in the LLaVA loader of the code).
Edge cases: not the identity for one adapter. keep_fraction 0.001 keeps R' entries for 8 adapters of rank 16, but 4 for four
and 1 for two: prefer `keep_per_adapter: r`. With mean smoothing and nearly orthogonal adapters the entries to choose from are
nearly equal, so rounding decides which are kept.
Differs: the code fixes the rank at 16 (here each adapter's own) and uses a randomised SVD (here exact).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import Core, Weights, polar, ratio
from ..method import Equivariant, Params

TIE = 1e-9
"""Entries this close to the threshold, relative, count as tied with it; identical adapters give ties that rounding splits."""


class DcMerge(Params):
    """Settings of dc_merge."""

    smoothing: Literal["mean", "linear"] = "mean"
    rho: Annotated[float, Field(ge=1)] = 5.0
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 0.001
    keep_per_adapter: Annotated[int, Field(ge=1)] | Literal["r"] | None = None
    gain: float = 1.0


def merge(core: Core, weights: Weights, params: DcMerge) -> Float[torch.Tensor, "*batch q_b q_a"]:
    """P C Q^T; vectors beyond an adapter's numerical rank are zero columns, and so are their rows and columns of C.

    Source: arXiv 2603.06242, algorithm 1.
    """
    u, v = (torch.cat([each[i] for each in core.svds], -1) for i in (0, 2))
    present = [(each[1] > 0).sum(-1) for each in core.svds]
    total = torch.stack(present).sum(0)
    cover_u, cover_v = polar(u, core.eps), polar(v, core.eps)
    kept: list[torch.Tensor] = []
    for (u_t, s_t, v_t), rank in zip(core.svds, present, strict=True):
        energies = _smoothed(s_t, rank, params)
        c = ((cover_u.mT @ u_t) * energies[..., None, :]) @ (v_t.mT @ cover_v)
        size = c.abs()
        k = _kept(total, rank, params)
        largest = size.flatten(-2).topk(max(1, int(k.max()))).values
        threshold = largest.gather(-1, (k[..., None] - 1).clamp_min(0))
        kept.append(torch.where(size >= (1 - TIE) * threshold[..., None], c, 0.0))
    entries = torch.stack(kept)
    agrees = entries.sign() == entries.sum(0).sign()
    agrees &= entries != 0
    mean = (entries * agrees).sum(0) / agrees.sum(0).clamp_min(1)
    owner = torch.repeat_interleave(torch.tensor([each[1].shape[-1] for each in core.svds], device=u.device))
    merged = torch.where(owner[:, None] == owner[None, :], mean, 0.0)
    return params.gain * cover_u @ merged @ cover_v.mT


def _smoothed(s: torch.Tensor, rank: torch.Tensor, params: DcMerge) -> torch.Tensor:
    """The energies e_t on the first `rank` values, 0 beyond."""
    place = torch.arange(s.shape[-1], device=s.device)
    inside = place < rank[..., None]
    total = s.sum(-1, keepdim=True)
    if params.smoothing == "mean":
        return torch.where(inside, total / rank[..., None].clamp_min(1), 0.0)
    last = s.gather(-1, (rank[..., None] - 1).clamp_min(0))
    top = ratio(s[..., :1], last).clamp(max=params.rho)
    slope = torch.where(inside, top + (1 - top) * place / (rank[..., None] - 1).clamp_min(1), 0.0)
    return total * ratio(slope, slope.sum(-1, keepdim=True))


def _kept(total: torch.Tensor, rank: torch.Tensor, params: DcMerge) -> torch.Tensor:
    """How many entries of C_t are kept, at most all."""
    each = params.keep_per_adapter
    if each == "r":
        return rank
    wanted = (total.double() ** 2 * params.keep_fraction).long() if each is None else torch.full_like(total, each)
    return wanted.clamp_min(1).clamp(max=total**2)


METHODS = (Equivariant(name="dc_merge", paper="2603.06242", params=DcMerge, merge=merge),)

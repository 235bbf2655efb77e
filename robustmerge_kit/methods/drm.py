"""Decompose jointly, renormalise, merge: DRM brings its own space.

    [D_1 | .. | D_n] = U S [V_1 | .. | V_n]      horizontal; directions with S > spectrum_cut * S_1; V_t is k x d_in
    Vn_t    V_t with rows of length 1, nu_t their lengths; a zero row stays 0
    trim    over the values of all Vn_t together, N = n k d_in: keep |x| >= the (N - round(N density))-th smallest
    X_t     S nu_t Vn_t, row by row
    X       mean over the non-zero entries whose sign is that of sum_t X_t (+ where it is 0), 0 where there are none
    D       gain * U X
    vertical: the same on the transposed deltas, the result transposed

Parameters:
    density        0.2        fraction KEPT
    direction      vertical   | horizontal
    spectrum_cut   0.01       fraction of the largest singular value below which directions are dropped
    gain           1.0

Edge cases: the result is factored already, its rank is at most R. One adapter loses its directions below spectrum_cut.
Differs: weights are in D_t, released code multiplies after the election; density 1 runs the method, released code bypasses it.
Source: arXiv 2505.23117; yophis/decom-renorm-merge 8c0f961.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from .. import election
from ..bases import joint
from ..election import Density
from ..factors import Core, FactorStack, LowRank, Weights, core, pad
from ..method import Draws, Factor, Params
from ..select import kth_magnitude


class Drm(Params):
    """Settings of drm."""

    density: Density = 0.2
    direction: Literal["horizontal", "vertical"] = "vertical"
    spectrum_cut: Annotated[float, Field(ge=0, lt=1)] = 0.01
    gain: float = 1.0


def merge_drm(stack: FactorStack, params: Drm, draws: Draws) -> LowRank:
    """Merge one site by DRM.

    Shapes: stack of n adapters -> rank k <= R; sites of a batch are padded to the largest k.
    Source: arXiv 2505.23117.
    """
    merged = [_merge_site(site, params) for site in core(stack).sites()]
    top = max(delta.rank for delta in merged)
    padded = [pad(delta, top) for delta in merged]
    b, a = (torch.stack(each).reshape(*stack.batch, *each[0].shape) for each in zip(*((x.b, x.a) for x in padded), strict=True))
    return LowRank(b, a)


def _merge_site(site: Core, params: Drm) -> LowRank:
    if params.direction == "horizontal":
        u, x = _merge_rows(site.q_b.full, site.q_a.full, list(site.pairs), site.eps, params)
        return LowRank(u, x)
    u, x = _merge_rows(site.q_a.full, site.q_b.full, [(a, b) for b, a in site.pairs], site.eps, params)
    return LowRank(x.mT, u.mT)


def _merge_rows(
    q_u: torch.Tensor, q_v: torch.Tensor, pairs: list[tuple[torch.Tensor, torch.Tensor]], eps: float, params: Drm
) -> tuple[torch.Tensor, torch.Tensor]:
    """U and X for deltas q_u left_t right_t^T q_v^T."""
    u, _ = joint(pairs, eps, params.spectrum_cut)
    # Rows of U^T D_t are S nu_t Vn_t: their lengths are S nu_t, their directions Vn_t.
    x = torch.stack([((u.mT @ left) @ right.mT).to(q_v) @ q_v.mT for left, right in pairs])
    lengths = x.norm(dim=-1, keepdim=True)
    unit = x / torch.where(lengths > 0, lengths, 1.0)
    position = unit.numel() - round(unit.numel() * params.density)
    if position > 0:
        x = x * (unit.abs() >= kth_magnitude(unit.flatten(), position))
    ones = Weights.of((1.0,) * len(pairs))
    return q_u @ u.to(q_u), params.gain * election.merge_elected(x, ones, normalize=True)


METHODS = (Factor(name="drm", paper="2505.23117", params=Drm, merge=merge_drm, split_dependent=False),)

"""Parameter competition balancing: score every entry by its size and its accord with the others, average the winners.

    q(x, lo, hi)   each adapter's N entries clamped to [sorted[int(N lo)], sorted[int(N (1 - hi) - 1)]], 0-based, ascending
    norm01(x)      (x - min) / (max - min) per adapter, 0 where it is constant
    a_t            q(|X_t|, clamp_tail, clamp_tail);   C_t = sign(X_t) a_t
    score_t        exp(n norm01(a_t)^2) tanh(X_t sum_u X_u)
    z_t            norm01(q(score_t, 1 - density, 0))
    D              gain * sum_t z_t C_t / max(sum_t z_t, 1e-12)

X_t is the weighted delta D_t, or what stands for it in the recipe's `space`; n counts the adapters with a delta there.

Parameters:
    density      0.1      fraction of scores that stay above the floor
    clamp_tail   0.0001   fraction of magnitudes clamped at each end
    scope        module | global   minima, maxima and quantiles per site, or per adapter over all sites (as published)
    gain         1.0      (the released script uses 1.2)

Edge cases: not homogeneous, because of tanh: scaling all inputs changes the direction. Not the identity for one adapter.
Source: arXiv 2410.02396; duguodong7/pcb-merging 5897888.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field

from .. import election
from ..election import Density
from ..factors import Weights
from ..method import Draws, Elementwise, Params, Stats, Whole


class Pcb(Params):
    """Settings of pcb."""

    density: Density = 0.1
    clamp_tail: Annotated[float, Field(ge=0, lt=0.5)] = 1e-4
    scope: Literal["module", "global"] = "module"
    gain: float = 1.0


def survey_pcb(whole: Whole, params: Pcb) -> Stats:
    """The bounds of the magnitudes of each adapter, then those of its scores."""
    tail = params.clamp_tail

    def at(position: float, numel: int) -> int:
        return min(max(int(position), 0), numel - 1)

    low, high = whole.order(
        election.magnitude,
        [at(n * tail, n) for n in whole.numel],
        [at(n * (1 - tail) - 1, n) for n in whole.numel],
    )
    sizes = {"low": low.value, "high": torch.maximum(low.value, high.value)}
    floor, top = whole.order(
        lambda x, draws: _score(x, draws.own(sizes)),
        [at(n * (1 - params.density), n) for n in whole.numel],
        [n - 1 for n in whole.numel],
        signed=True,
    )
    return {**sizes, "floor": floor.value, "top": top.value}


def merge_pcb(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: Pcb, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Average the clamped entries, weighted by their scores.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    Source: arXiv 2410.02396, Eq. 2 to 6.
    """
    z = _norm01(_score(x, stats), stats["floor"], stats["top"])
    clamped = x.sign() * _clamp(x.abs(), stats["low"], stats["high"])
    return params.gain * (z * clamped).sum(-3) / z.sum(-3).clamp_min(1e-12)


def _score(x: torch.Tensor, sizes: Stats) -> torch.Tensor:
    size = _norm01(x.abs(), sizes["low"], sizes["high"])
    return torch.exp(x.shape[-3] * size.square()) * torch.tanh(x * x.sum(-3, keepdim=True))


def _clamp(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.maximum(x, low.to(x.dtype)[..., None, None]), high.to(x.dtype)[..., None, None])


def _norm01(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """(x - low) / (high - low) after clamping; both bounds are attained, so they are minimum and maximum."""
    width = (high - low).to(x.dtype)[..., None, None]
    return (_clamp(x, low, high) - low.to(x.dtype)[..., None, None]) / torch.where(width > 0, width, 1.0)


METHODS = (Elementwise(name="pcb", paper="2410.02396", params=Pcb, merge=merge_pcb, survey=survey_pcb),)

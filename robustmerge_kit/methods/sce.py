"""Select where the adapters vary, calculate how much each counts, erase who disagrees.

    select      keep the int(density * #{variance > 0}) entries of largest variance over the adapters (divisor n), the same
                ones for all; equal variances by lower index; density 1 keeps all
    calculate   a_t = mean of the squares of the selected X_t, divided by sum_t a_t
    erase       e_t = a_t where sign(X_t) = g, g = +1 where sum_t X_t >= 0, else -1;  0 elsewhere
    D           gain * sum_t e_t X_t / sum_t e_t, 0 where nobody agrees

X_t is the weighted delta D_t, or what stands for it in the recipe's `space`.

Parameters:
    density   1.0   fraction KEPT (mergekit: select_topk)
    gain      1.0

Edge cases: with one adapter every variance is 0, so that density < 1 selects nothing.
Differs: mergekit switches to equal weights when the squares sum to less than an absolute 1e-6, which real LoRA deltas reach.
Source: arXiv 2408.07990; mergekit 0.1.5.
"""

from __future__ import annotations

import torch
from jaxtyping import Float

from .. import election
from ..election import Density
from ..factors import Weights
from ..method import Draws, Elementwise, Params, Stats, Whole


class Sce(Params):
    """Settings of sce."""

    density: Density = 1.0
    gain: float = 1.0


def variance(x: Float[torch.Tensor, "*batch n rows cols"], draws: Draws) -> Float[torch.Tensor, "*batch 1 rows cols"]:
    """Variance of each entry over the adapters, divisor n; exactly 0 where all agree.

    Shapes: (..., n, rows, cols) -> (..., 1, rows, cols).
    """
    # Differences from the first adapter, so that equal entries give 0 and not a rounding error.
    offset = x - x[..., :1, :, :]
    return (offset - offset.mean(-3, keepdim=True)).square().mean(-3, keepdim=True)


def survey_sce(whole: Whole, params: Sce) -> Stats:
    """The least variance that is selected, and a_t."""
    selected: Stats = {}
    if params.density < 1:
        varying = whole.total(lambda x, draws: variance(x, draws) > 0)
        keep = (params.density * varying).to(torch.int64)
        selected = election.survey_largest(whole, variance, keep, torch.tensor(whole.numel[0], device=keep.device))

    def squares(x: torch.Tensor, draws: Draws) -> torch.Tensor:
        return _select(x, draws, selected).square()

    total = whole.total(squares)
    mass = total.sum(-1, keepdim=True)
    return {**selected, "share": torch.where(mass > 0, total / torch.where(mass > 0, mass, 1.0), 1.0 / len(whole.numel))}


def _select(x: torch.Tensor, draws: Draws, stats: Stats) -> torch.Tensor:
    if "least" not in stats:
        return x
    return x * election.within(variance(x, draws), stats["least"], stats.get("last"), draws)


def merge_sce(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: Sce, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Select, calculate, erase.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    Source: arXiv 2408.07990, section 3.3.
    """
    x = _select(x, draws, stats)
    agrees = election.positive(x * election.elect(x)[..., None, :, :])
    share = agrees * stats["share"].to(x.dtype)[..., None, None]
    mass = share.sum(-3)
    return params.gain * (share * x).sum(-3) / torch.where(mass > 0, mass, 1.0)


METHODS = (Elementwise(name="sce", paper="2408.07990", params=Sce, merge=merge_sce, survey=survey_sce),)

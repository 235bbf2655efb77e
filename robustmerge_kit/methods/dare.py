"""Drop at random and rescale: dare_linear adds up, dare_ties elects a sign first.

    m_t          1 where u < density, u uniform and keyed by (seed, site, adapter): the same whatever the order of adapters
    X_t          <- m_t X_t / density                       `rescale: inverse`
                    m_t X_t ||X_t||_1 / ||m_t X_t||_1       `rescale: l1` (1 where either norm is 0)
                    m_t X_t                                 `rescale: none`
    dare_linear  D = gain * sum_t X_t                       `normalize` divides by sum_t w_t
    dare_ties    D = gain * (trim to ties_density, elect, sum of agreeing entries); `normalize` divides by their |w_t|

X_t is the weighted delta D_t, or what stands for it in the recipe's `space`: in core, knots and ctm, coordinates of that
basis are dropped.

Parameters:
    density        required   fraction KEPT, per adapter if wished; 1 drops nothing
    rescale        inverse | l1 | none
    ties_density   1.0        dare_ties: trim after the drop
    normalize      false
    gain           1.0

Differs: mergekit's boolean `rescale: true` is `l1`, and its masks come from a global generator.
Source: arXiv 2311.03099.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float

from .. import election
from ..election import Density, Rescale
from ..factors import Weights
from ..method import Draws, Elementwise, Of, Params, Stats, Whole


class DareLinear(Params):
    """Settings of dare_linear."""

    per_adapter: ClassVar[tuple[str, ...]] = ("density",)
    density: Density | tuple[Density, ...]
    rescale: Rescale = "inverse"
    normalize: bool = False
    gain: float = 1.0


class DareTies(DareLinear):
    """Settings of dare_ties."""

    ties_density: Density = 1.0


def _masked(params: DareLinear) -> Of:
    """m_t X_t, divided by density with `rescale: inverse`."""

    def masked(x: torch.Tensor, draws: Draws) -> torch.Tensor:
        densities = params.each("density", x.shape[-3])
        out = x.clone()
        for t, density in enumerate(densities):
            if density < 1:
                each = out[..., t, :, :]
                each *= election.positive(density - draws.uniform(t, "dare drop", each))
                if params.rescale == "inverse":
                    each /= density
        return out

    return masked


def _sparse(x: torch.Tensor, params: DareLinear, draws: Draws, stats: Stats) -> torch.Tensor:
    x = _masked(params)(x, draws)
    return x * stats["l1"].to(x.dtype)[..., None, None] if "l1" in stats else x


def survey_dare(whole: Whole, params: DareLinear) -> Stats:
    """The l1 factors, if asked for."""
    return election.survey_l1(whole, _masked(params)) if _drops(params) and params.rescale == "l1" else {}


def survey_dare_ties(whole: Whole, params: DareTies) -> Stats:
    """The l1 factors, then the thresholds of what was kept."""
    stats = survey_dare(whole, params)

    def sparse(x: torch.Tensor, draws: Draws) -> torch.Tensor:
        return _sparse(x, params, draws, stats).abs()

    return {**stats, **election.survey_trim(whole, (params.ties_density,) * len(whole.numel), of=sparse)}


def merge_dare_linear(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: DareLinear, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Drop, rescale, add up.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    """
    return params.gain * election.merge_sum(_sparse(x, params, draws, stats), weights, params.normalize)


def merge_dare_ties(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: DareTies, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Drop, rescale, trim, elect, merge.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    """
    kept = election.trim(_sparse(x, params, draws, stats), stats, draws)
    return params.gain * election.merge_elected(kept, weights, params.normalize)


def _drops(params: DareLinear) -> bool:
    return any(density < 1 for density in params.each("density", 1))


def _check(params: DareLinear, weights: Sequence[float]) -> str | None:
    return election.refuse_cancelling(params.normalize, weights)


METHODS = (
    Elementwise(
        name="dare_linear",
        paper="2311.03099",
        params=DareLinear,
        merge=merge_dare_linear,
        survey=survey_dare,
        random=_drops,
        check=_check,
    ),
    Elementwise(
        name="dare_ties", paper="2311.03099", params=DareTies, merge=merge_dare_ties, survey=survey_dare_ties, random=_drops
    ),
)

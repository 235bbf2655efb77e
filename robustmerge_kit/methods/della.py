"""Drop at random, small entries more often: della_linear adds up, della elects a sign first.

    place          of |x| in the ascending order of its row of X_t, 1 to m; equal magnitudes by column
    p              density - epsilon + 2 epsilon (place - 1) / (m - 1)       probability of being kept; m = 1: density
    X_t            <- X_t / p where u < p, else 0                            `rescale: inverse`
                      l1: all kept entries times ||X_t||_1 / ||kept||_1 instead (1 where either is 0);  none: as they are
    della_linear   D = gain * sum_t X_t                                      `normalize` divides by sum_t w_t
    della          D = gain * (elect, sum of agreeing entries)               `normalize` divides by their |w_t|

u is uniform and keyed by (seed, site, adapter). X_t is the weighted delta D_t, or what stands for it in the recipe's `space`.

Parameters:
    density     required   mean fraction KEPT, per adapter if wished; 1 drops nothing
    epsilon     0.15       half the spread of p; 0 < density - epsilon and density + epsilon < 1 unless density is 1
    rescale     inverse | l1 | none
    normalize   della_linear false, della true
    gain        1.0

Differs: mergekit's boolean `rescale: true` is `l1`; it yields NaN for rows of one entry.
Source: arXiv 2406.11617.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, model_validator

from .. import election
from ..election import Density, Rescale
from ..factors import Weights
from ..method import Draws, Elementwise, Of, Params, Stats, Whole
from ..select import rank_magnitudes


class DellaLinear(Params):
    """Settings of della_linear."""

    per_adapter: ClassVar[tuple[str, ...]] = ("density",)
    density: Density | tuple[Density, ...]
    epsilon: Annotated[float, Field(ge=0, lt=0.5)] = 0.15
    rescale: Rescale = "inverse"
    normalize: bool = False
    gain: float = 1.0

    @model_validator(mode="after")
    def _probabilities(self) -> DellaLinear:
        for density in self.density if isinstance(self.density, tuple) else (self.density,):
            if density < 1 and not 0 < density - self.epsilon <= density + self.epsilon < 1:
                low, high = density - self.epsilon, density + self.epsilon
                raise ValueError(
                    f"density {density:g} with epsilon {self.epsilon:g} gives probabilities from {low:g} to {high:g}; "
                    "they must lie between 0 and 1: lower epsilon"
                )
        return self


class Della(DellaLinear):
    """Settings of della."""

    normalize: bool = True


def _kept(params: DellaLinear) -> Of:
    def kept(x: torch.Tensor, draws: Draws) -> torch.Tensor:
        out = x.clone()
        for t, density in enumerate(params.each("density", x.shape[-3])):
            if density < 1:
                each = out[..., t, :, :]
                probability = _probability(each, density, params.epsilon)
                each *= election.positive(probability - draws.uniform(t, "della drop", each))
                if params.rescale == "inverse":
                    each /= probability
        return out

    return kept


def _probability(
    x: Float[torch.Tensor, "*batch rows m"], density: float, epsilon: float
) -> Float[torch.Tensor, "*batch rows m"]:
    """Chance of each entry to be kept, float32, increasing with its place in its row."""
    m = x.shape[-1]
    if m == 1:
        return torch.full_like(x, density, dtype=torch.float32)
    ramp = torch.linspace(density - epsilon, density + epsilon, m, dtype=torch.float32, device=x.device)
    return ramp[rank_magnitudes(x)]


def survey_della(whole: Whole, params: DellaLinear) -> Stats:
    """The l1 factors, if asked for."""
    return election.survey_l1(whole, _kept(params)) if _drops(params) and params.rescale == "l1" else {}


def _sparse(x: torch.Tensor, params: DellaLinear, draws: Draws, stats: Stats) -> torch.Tensor:
    x = _kept(params)(x, draws)
    return x * stats["l1"].to(x.dtype)[..., None, None] if "l1" in stats else x


def merge_della_linear(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: DellaLinear, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Drop, rescale, add up.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    """
    return params.gain * election.merge_sum(_sparse(x, params, draws, stats), weights, params.normalize)


def merge_della(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: Della, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Drop, rescale, elect, merge.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    """
    return params.gain * election.merge_elected(_sparse(x, params, draws, stats), weights, params.normalize)


def _drops(params: DellaLinear) -> bool:
    return any(density < 1 for density in params.each("density", 1))


def _check(params: DellaLinear, weights: Sequence[float]) -> str | None:
    return election.refuse_cancelling(params.normalize, weights)


METHODS = (
    Elementwise(
        name="della_linear",
        paper="2406.11617",
        params=DellaLinear,
        merge=merge_della_linear,
        survey=survey_della,
        random=_drops,
        check=_check,
    ),
    Elementwise(name="della", paper="2406.11617", params=Della, merge=merge_della, survey=survey_della, random=_drops),
)

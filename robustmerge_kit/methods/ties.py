"""Trim, elect a sign, merge what agrees: ties; and magnitude_prune, which trims and adds up.

    trim     X_t <- X_t where it is among the `density` fraction of largest magnitudes of adapter t, else 0
    elect    g = +1 where sum_t X_t >= 0, else -1                                   entry by entry
    merge    ties              D = gain * sum over t with sign(X_t) = g of X_t; `normalize` divides by their sum of |w_t|
             magnitude_prune   D = gain * sum_t X_t                             ; `normalize` divides by sum_t w_t

X_t is the weighted delta D_t, or what stands for it in the recipe's `space`.

Parameters:
    density      ties 1.0 (paper: 0.2), magnitude_prune: required   fraction KEPT, per adapter if wished
    trim         topk | kth (ties)   topk keeps exactly max(1, int(density * numel)) entries, equal magnitudes by lower
                 index; kth keeps all |x| >= the (numel - int(density * numel))-th smallest: one more, and every tie
    scope        module | global (ties)   one threshold per adapter and site, or per adapter over all sites
    normalize    ties true, magnitude_prune false
    gain         1.0

Edge cases: entries that nobody agrees on are 0. A sum of exactly 0 elects +. With `scope: global` an adapter's threshold is
taken over the sites where its delta is not zero.
Differs: mergekit divides by the signed sum of weights, which flips or explodes with negative ones; here |w_t| counts. PEFT
elects on unweighted values and divides by the number of agreeing entries (`peft_ties`). The original gives a zero sum the
sign of the sum of all elected signs.
Source: arXiv 2306.01708 (ties); PEFT (magnitude_prune).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float

from .. import election
from ..election import Density, Trim
from ..factors import Weights
from ..method import Draws, Elementwise, Params, Stats, Whole


class Ties(Params):
    """Settings of ties."""

    per_adapter: ClassVar[tuple[str, ...]] = ("density",)
    density: Density | tuple[Density, ...] = 1.0
    normalize: bool = True
    trim: Trim = "topk"
    scope: Literal["module", "global"] = "module"
    gain: float = 1.0


class MagnitudePrune(Params):
    """Settings of magnitude_prune."""

    per_adapter: ClassVar[tuple[str, ...]] = ("density",)
    density: Density | tuple[Density, ...]
    normalize: bool = False
    gain: float = 1.0


def survey_ties(whole: Whole, params: Ties) -> Stats:
    """The threshold of each adapter."""
    return election.survey_trim(whole, params.each("density", len(whole.numel)), params.trim)


def merge_ties(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: Ties, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Trim, elect, merge.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    Source: arXiv 2306.01708, Algorithm 1.
    """
    return params.gain * election.merge_elected(election.trim(x, stats, draws), weights, params.normalize)


def survey_magnitude_prune(whole: Whole, params: MagnitudePrune) -> Stats:
    """The threshold of each adapter."""
    return election.survey_trim(whole, params.each("density", len(whole.numel)))


def merge_magnitude_prune(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: MagnitudePrune, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Trim, add up.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    """
    return params.gain * election.merge_sum(election.trim(x, stats, draws), weights, params.normalize)


def _check(params: MagnitudePrune, weights: Sequence[float]) -> str | None:
    return election.refuse_cancelling(params.normalize, weights)


METHODS = (
    Elementwise(name="ties", paper="2306.01708", params=Ties, merge=merge_ties, survey=survey_ties),
    Elementwise(
        name="magnitude_prune",
        paper="PEFT",
        params=MagnitudePrune,
        merge=merge_magnitude_prune,
        survey=survey_magnitude_prune,
        check=_check,
    ),
)

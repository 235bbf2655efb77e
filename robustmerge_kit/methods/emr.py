"""Elect a sign and take the largest entry that agrees: the unified vector of EMR-Merging.

    g = +1 where sum_t X_t >= 0, else -1
    D = gain * g * max of |X_t| over t with sign(X_t) = g, 0 where nobody agrees

X_t is the weighted delta D_t, or what stands for it in the recipe's `space`.

Parameters:
    gain   1.0

Differs: the paper's masks and rescalers need to know the task at run time and are no adapter; released code elects - where
the sum is exactly 0.
Source: arXiv 2405.17461, Eq. 1 and 2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float

from .. import election
from ..factors import Weights
from ..method import Draws, Elementwise, Params, Stats


class Emr(Params):
    """Settings of emr."""

    gain: float = 1.0


def merge_emr(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: Emr, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """The unified vector.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    Source: arXiv 2405.17461, Eq. 1 and 2.
    """
    sign = election.elect(x)
    largest = (x * sign[..., None, :, :]).amax(-3).clamp_min(0)
    return params.gain * sign * largest


METHODS = (Elementwise(name="emr", paper="2405.17461", params=Emr, merge=merge_emr),)

"""Keep the entries of the sum that matter to enough adapters: consensus merging with TALL masks.

    T       gain * sum_t X_t
    mask_t  |X_t| > tall_lambda * |T - X_t|            strictly
    D       T where at least `agree` masks hold, else 0

X_t is the weighted delta D_t, or what stands for it in the recipe's `space`.

Parameters:
    tall_lambda   0.4   larger: fewer entries matter to an adapter; usually 0.2 to 0.6
    agree         2     masks that must hold; an error if it exceeds the number of adapters
    gain          1.0   acts inside the masks too

Edge cases: `agree: 2` needs two adapters with a delta; one alone gives 0.
Source: arXiv 2405.07813, Eq. 5 and 6; IBM/STAR e6bfcf7 (strict inequality, gain inside the masks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import Weights
from ..method import Draws, Elementwise, Params, Stats


class Consensus(Params):
    """Settings of consensus."""

    tall_lambda: Annotated[float, Field(ge=0)] = 0.4
    agree: Annotated[int, Field(ge=1)] = 2
    gain: float = 1.0


def merge_consensus(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: Consensus, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """The sum where enough masks hold.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    Source: arXiv 2405.07813, Eq. 5 and 6.
    """
    total = params.gain * x.sum(-3)
    matters = x.abs() > params.tall_lambda * (total[..., None, :, :] - x).abs()
    return total * (matters.sum(-3) >= params.agree)


def _check(params: Consensus, weights: Sequence[float]) -> str | None:
    if params.agree > len(weights):
        return f"agree {params.agree} asks for more masks than there are adapters ({len(weights)}); lower agree"
    return None


METHODS = (Elementwise(name="consensus", paper="2405.07813", params=Consensus, merge=merge_consensus, check=_check),)

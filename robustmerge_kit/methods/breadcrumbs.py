"""Drop the few largest and the many smallest entries: breadcrumbs adds up, breadcrumbs_ties elects a sign first.

    N = numel, keep = int(density N), top = int(gamma N), bottom = max(0, N - keep - top)
    X_t                <- X_t at places bottom .. bottom + keep - 1 of the ascending (stable) order of |X_t|, else 0
    breadcrumbs        D = gain * sum_t X_t                           `normalize` divides by sum_t w_t
    breadcrumbs_ties   D = gain * (elect, sum of agreeing entries)    `normalize` divides by their |w_t|

X_t is the weighted delta D_t, or what stands for it in the recipe's `space`. The `top` largest go first; fewer of them go
if `density` would not be reached. At density 1 nothing is dropped, outliers included.

Parameters:
    density     1.0    fraction KEPT, per adapter if wished
    gamma       0.01   fraction of largest entries dropped, per adapter if wished
    normalize   false
    gain        1.0

Source: arXiv 2312.06795; mergekit 0.1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field

from .. import election
from ..election import Density
from ..factors import Weights
from ..method import Draws, Elementwise, Params, Stats, Whole

Gamma = Annotated[float, Field(ge=0, lt=1)]


class Breadcrumbs(Params):
    """Settings of breadcrumbs and breadcrumbs_ties."""

    per_adapter: ClassVar[tuple[str, ...]] = ("density", "gamma")
    density: Density | tuple[Density, ...] = 1.0
    gamma: Gamma | tuple[Gamma, ...] = 0.01
    normalize: bool = False
    gain: float = 1.0


def survey_breadcrumbs(whole: Whole, params: Breadcrumbs) -> Stats:
    """The least and the largest entry that stay, in the stable ascending order: value and flat index of each."""
    n = len(whole.numel)
    densities, gammas = params.each("density", n), params.each("gamma", n)
    if all(density == 1 for density in densities):
        return {}
    keep = [int(d * numel) for d, numel in zip(densities, whole.numel, strict=True)]
    bottom = [min(m - 1, max(0, m - k - int(g * m))) for k, g, m in zip(keep, gammas, whole.numel, strict=True)]
    top = [max(0, b + k - 1) for b, k in zip(bottom, keep, strict=True)]
    low, high = whole.order(election.magnitude, bottom, top)
    stats: dict[str, torch.Tensor] = {}
    for name, order, position in (("low", low, bottom), ("high", high, top)):
        nth = torch.tensor(position, device=order.below.device) - order.below
        # A zero may stay or go; where no equal is cut off the index is not needed.
        cut = nth > 0 if name == "low" else nth < order.equal - 1
        found = whole.locate(election.magnitude, order.value, torch.where(cut & (order.value > 0), nth, -1))
        stats[name] = order.value
        everything = -1 if name == "low" else torch.iinfo(torch.int64).max
        stats[f"{name}_index"] = torch.where(found < 0, everything, found)
    nothing = torch.tensor([k == 0 for k in keep], device=high.value.device)
    stats["high"] = torch.where(nothing, -1.0, high.value)
    return stats


def _without_outliers(x: torch.Tensor, draws: Draws, stats: Stats) -> torch.Tensor:
    if not stats:
        return x
    rows, cols = x.shape[-2:]
    first = draws.first_entry(cols)
    index = torch.arange(first, first + rows * cols, device=x.device).reshape(rows, cols)
    size = x.abs()
    low, low_index, high, high_index = (stats[name][..., None, None] for name in ("low", "low_index", "high", "high_index"))
    kept = (size > low.to(x.dtype)) | ((size == low.to(x.dtype)) & (index >= low_index))
    kept &= (size < high.to(x.dtype)) | ((size == high.to(x.dtype)) & (index <= high_index))
    return x * kept


def merge_breadcrumbs(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: Breadcrumbs, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Drop both ends, add up.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    """
    return params.gain * election.merge_sum(_without_outliers(x, draws, stats), weights, params.normalize)


def merge_breadcrumbs_ties(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, params: Breadcrumbs, draws: Draws, stats: Stats
) -> Float[torch.Tensor, "*batch rows cols"]:
    """Drop both ends, elect, merge.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    """
    return params.gain * election.merge_elected(_without_outliers(x, draws, stats), weights, params.normalize)


def _check(params: Breadcrumbs, weights: Sequence[float]) -> str | None:
    return election.refuse_cancelling(params.normalize, weights)


METHODS = (
    Elementwise(
        name="breadcrumbs",
        paper="2312.06795",
        params=Breadcrumbs,
        merge=merge_breadcrumbs,
        survey=survey_breadcrumbs,
        check=_check,
    ),
    Elementwise(
        name="breadcrumbs_ties",
        paper="2312.06795",
        params=Breadcrumbs,
        merge=merge_breadcrumbs_ties,
        survey=survey_breadcrumbs,
    ),
)

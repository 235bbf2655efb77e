"""RobustMerge: prune by magnitude, scale B by what A lost, normalise across tasks.

    A~_t, B~_t   entries of at least the k-th smallest magnitude, k = int(numel * (1 - density)); ties are kept
    S_t[i]       sum_j |A_t[i,j]| / sum_j |A~_t[i,j]|           complementary scale of rank row i, at least 1
    clamp        S_t <- min(max(S_t, lo), hi), lo the `clamp_quantile` of S_t over the rank rows, hi its maximum
    Sbar_t[i]    S_t[i] / sum_u S_u[i]                          cross-task normalisation

    official     A' = gain * sum_t A~_t            B' = gain * sum_t B~_t diag(Sbar_t)          rank max r_t, as released
    paper        A' = [A~_1; ..; A~_n]             B' = gain * [B~_1 diag(Sbar_1) | ..]         rank R, the paper's algorithm
    factor_sum   A' = sum_t A~_t                   B' = gain * sum_t B~_t diag(Sbar_t)          rank max r_t, gain once

B_t carries weight * alpha/r. `official` puts gain into both factors, so the delta grows with gain squared, and its product
has cross terms B_i A_j; it is what the published numbers were made with. The three variants are different operators.

Parameters:
    variant         official | paper | factor_sum
    density         0.2    fraction KEPT of every factor; per adapter if wished
    gain            2.0    (paper's lambda)
    clamp           true for official, false otherwise; clamp_quantile 0.8
    normalize       true   false: Sbar = S; lower gain then
    prune           true   false: A~ = A, B~ = B, S = 1
    scaling         inter | none | A | B | A+B   A: columns of A by their own loss; B: rows of B by theirs (ablation)
    criterion       magnitude | random | sign    (ablation; sign keeps entries that agree with the sum's sign first)

Edge cases: a row of A that is zero or fully pruned has S = 1 and takes the clamp's floor (the released code gives inf or
NaN). Adapters of unequal rank are paired by row index; a row that an adapter lacks takes no part in the sum over adapters.
Differs: released code ignores differing alpha/r, relies on the order of keys in the file, and keeps S in bfloat16 for such
inputs; here scales are folded first, factors are paired by name, and arithmetic is float32.
Source: arXiv 2502.17159 (NeurIPS 2025), Eq. 2 to 5; AuroraZengfh/RobustMerge 1212802.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..factors import FactorStack, LowRank
from ..method import Draws, Factor, Params
from ..pruning import Array, Losses, prune

Density = Annotated[float, Field(gt=0, le=1)]


class RobustMerge(Params):
    """Settings of robustmerge; `clamp` left out means: as the variant was published."""

    per_adapter: ClassVar[tuple[str, ...]] = ("density",)
    variant: Literal["official", "paper", "factor_sum"] = "official"
    density: Density | tuple[Density, ...] = 0.2
    gain: float = 2.0
    clamp: bool | None = None
    clamp_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.8
    normalize: bool = True
    prune: bool = True
    scaling: Literal["none", "A", "B", "A+B", "inter"] = "inter"
    criterion: Literal["magnitude", "random", "sign"] = "magnitude"

    @model_validator(mode="after")
    def _variant_decides_clamp(self) -> RobustMerge:
        if self.clamp is None:
            object.__setattr__(self, "clamp", self.variant == "official")
        return self


def merge_robust(stack: FactorStack, params: RobustMerge, draws: Draws) -> LowRank:
    """Merge one site by RobustMerge.

    Shapes: stack of n adapters -> b (..., d_out, k), a (..., k, d_in) with k = R for `paper`, else max r_t.
    Source: arXiv 2502.17159.
    """
    scores = _scores(stack, params, draws)
    a_axis = {"inter": -1, "A": -2, "A+B": -2}.get(params.scaling)
    b_axis = {"B": -1, "A+B": -1}.get(params.scaling)
    joins = params.variant == "paper"
    a = _Collected(stack.a, joins, -2, stack.dtype, apart=a_axis == -2)
    a_losses = a.prune(params, a_axis, scores and scores.a)
    columns = _coefficients(stack) * params.gain
    if params.scaling in ("inter", "none"):
        columns = columns * _scales(a_losses, stack.ranks, params)
    b = _Collected(stack.b, joins, -1, stack.dtype, apart=b_axis is not None)
    b_losses = b.prune(params, b_axis, scores and scores.b, columns)
    if a_axis == -2:
        a.scale(_scales(a_losses, (stack.d_in,), params)[..., None, :])
    if b_axis is not None:
        b.scale(_scales(b_losses, (stack.d_out,), params)[..., None])
    merged_a = a.result()
    return LowRank(b=b.result(), a=merged_a.mul_(params.gain) if params.variant == "official" else merged_a)


class _Collected:
    """What the adapters' factors become: joined along the rank axis for `paper`, else added index by index.

    The shorter of two factors that are added counts as padded with zeros. apart: they are kept side by side until the end,
    because `scale` will be called.
    """

    def __init__(self, factors: Sequence[torch.Tensor], joins: bool, axis: int, dtype: torch.dtype, apart: bool) -> None:
        sizes = [x.shape[axis] for x in factors]
        beside = joins or apart
        shape = list(factors[0].shape)
        shape[axis] = sum(sizes) if beside else max(sizes)
        self._factors = factors
        self._axis = axis
        self._held = factors[0].new_zeros(shape, dtype=dtype)
        self._places = self._held.split(sizes, axis) if beside else [_first(self._held, axis, size) for size in sizes]
        self._adds_up = apart and not joins

    def prune(
        self,
        params: RobustMerge,
        axis: int | None,
        scores: Sequence[torch.Tensor] | None,
        scales: Array | None = None,
    ) -> Losses:
        """Take every adapter's factor, pruned, times the scales (..., n, cols) of its columns; what it lost along an axis.

        B is pruned without its coefficient: a factor common to all entries cannot move the mask.
        """
        densities = params.each("density", len(self._factors)) if params.prune else [1.0] * len(self._factors)
        k = [int(x.shape[-2] * x.shape[-1] * (1 - density)) for x, density in zip(self._factors, densities, strict=True)]
        return prune(self._factors, k, self._places, scales, axis, scores)

    def scale(self, scales: Array) -> None:
        """Multiply every adapter's factor by its own scale, (..., n, rows or 1, cols or 1)."""
        each = torch.as_tensor(scales, dtype=self._held.dtype, device=self._held.device).unbind(-3)
        for place, scale in zip(self._places, each, strict=True):
            place *= scale

    def result(self) -> torch.Tensor:
        """The merged factor."""
        return _add_up(self._places, self._axis) if self._adds_up else self._held


def _first(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    return x if x.shape[axis] == size else x.narrow(axis, 0, size)


def _add_up(parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """The sum of parts along an axis; the shorter ones count as padded with zeros."""
    total = torch.zeros_like(max(parts, key=lambda part: part.shape[axis]))
    for part in parts:
        _first(total, axis, part.shape[axis]).add_(part)
    return total


class _Scores(NamedTuple):
    """Scores of the entries of every A_t and B_t; the highest are kept, as many as by magnitude."""

    a: list[torch.Tensor]
    b: list[torch.Tensor]


def _scores(stack: FactorStack, params: RobustMerge, draws: Draws) -> _Scores | None:
    """What the ablation criteria keep entries by; None: their magnitude."""
    if not params.prune or params.criterion == "magnitude":
        return None
    if params.criterion == "random":
        return _Scores(
            [draws.uniform(t, "robustmerge prune A", x) for t, x in enumerate(stack.a)],
            [draws.uniform(t, "robustmerge prune B", x) for t, x in enumerate(stack.b)],
        )
    a = [stack.folded_a(t) for t in range(len(stack))]
    b = [stack.folded_b(t) for t in range(len(stack))]
    return _Scores(_agreement(a, -2), _agreement(b, -1))


def _agreement(parts: Sequence[torch.Tensor], axis: int) -> list[torch.Tensor]:
    """A score that puts entries of the sum's sign before all others, larger magnitudes first within both groups."""
    signs = _add_up(parts, axis).sign()
    scores: list[torch.Tensor] = []
    for x in parts:
        sign = signs.narrow(axis, 0, x.shape[axis])
        relative = x.double().abs() / x.double().abs().amax(dim=(-2, -1), keepdim=True).clamp_min(
            torch.finfo(torch.double).tiny
        )
        scores.append(relative + 2.0 * ((sign == x.sign()) & (sign != 0)))
    return scores


def _coefficients(stack: FactorStack) -> Array:
    """The coefficients c_t, (..., n, 1)."""
    if not any(isinstance(c, torch.Tensor) for c in stack.coefficients):
        return np.array(stack.coefficients, dtype=np.float64)[:, None]
    each = [c.cpu().numpy() if isinstance(c, torch.Tensor) else c for c in stack.coefficients]
    return np.stack([np.broadcast_to(c, stack.batch) for c in each], -1)[..., None]


def _scales(losses: Losses, sizes: Sequence[int], params: RobustMerge) -> Array:
    """S_t of all adapters, clamped, and normalised over the adapters that have the index; 0 where one lacks it.

    An index that pruning emptied counts as unpruned.

    Shapes: losses (..., n, max size), of which adapter t has sizes[t] -> (..., n, max size).
    """
    finite = losses.rest > 0
    scales = np.divide(losses.full, losses.rest, out=np.ones_like(losses.full), where=finite)
    if params.clamp:
        scales = _clamp(scales, finite, params.clamp_quantile)
    if min(sizes) < max(sizes):
        scales = np.where(np.arange(max(sizes)) < np.array(sizes)[:, None], scales, 0.0)
    if params.normalize:
        scales = scales / scales.sum(-2, keepdims=True)
    return scales


def _clamp(scales: Array, finite: NDArray[np.bool_], quantile: float) -> Array:
    """A floor at the quantile over the finite entries; the others count as 1 and take the floor. No finite entry: 1."""
    count = finite.sum(-1, keepdims=True)
    ascending = np.sort(np.where(finite, scales, np.inf), axis=-1)
    floors = np.array([int(quantile * m) for m in range(scales.shape[-1] + 1)])
    low = np.take_along_axis(ascending, floors[count], -1)
    high = np.take_along_axis(ascending, np.maximum(count - 1, 0), -1)
    return np.where(count > 0, np.clip(scales, low, high), 1.0)


def output_rank(ranks: Sequence[int], params: RobustMerge) -> int:
    """R for `paper`, the largest rank for the variants that add factors."""
    return sum(ranks) if params.variant == "paper" else max(ranks)


ROBUSTMERGE = Factor(
    name="robustmerge",
    paper="2502.17159",
    params=RobustMerge,
    merge=merge_robust,
    rank=output_rank,
    random=lambda params: params.criterion == "random",
)
METHODS = (ROBUSTMERGE,)

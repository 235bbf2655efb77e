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

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..factors import FactorStack, LowRank
from ..method import Draws, Factor, Params
from ..select import select_magnitude

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
    scores = _scores(stack, params, draws) if params.prune and params.criterion != "magnitude" else None
    densities = params.each("density", len(stack)) if params.prune else (1.0,) * len(stack)
    a_pruned = (
        _Pruned(a.to(stack.dtype), density, scores and scores.a[t])
        for t, (a, density) in enumerate(zip(stack.a, densities, strict=True))
    )
    b_pruned = (
        _Pruned(b.to(stack.dtype), density, scores and scores.b[t])
        for t, (b, density) in enumerate(zip(stack.b, densities, strict=True))
    )
    a_merged = _Collected(params.variant, -2)
    rank_losses: list[Tensor] = []
    if params.scaling in ("A", "A+B"):
        held = list(a_pruned)
        for kept, scale in zip(held, _scales([kept.loss(-2) for kept in held], params), strict=True):
            a_merged.add(kept.values * scale[..., None, :])
    else:
        for kept in a_pruned:
            rank_losses.append(kept.loss(-1) if params.scaling == "inter" else torch.ones_like(kept.values[..., 0]))
            a_merged.add(kept.values)
    factors = [torch.as_tensor(c, dtype=stack.dtype, device=stack.b[0].device) * params.gain for c in stack.coefficients]
    b_merged = _Collected(params.variant, -1)
    if params.scaling in ("B", "A+B"):
        held = list(b_pruned)
        for kept, scale, factor in zip(held, _scales([kept.loss(-1) for kept in held], params), factors, strict=True):
            b_merged.add(kept.values * scale[..., :, None], factor[..., None, None])
    elif params.scaling == "A":
        for kept, factor in zip(b_pruned, factors, strict=True):
            b_merged.add(kept.values, factor[..., None, None])
    else:
        for kept, scale, factor in zip(b_pruned, _scales(rank_losses, params), factors, strict=True):
            b_merged.add(kept.values, (scale * factor[..., None])[..., None, :])
    a = a_merged.result()
    return LowRank(b=b_merged.result(), a=a * params.gain if params.variant == "official" else a)


class _Collected:
    """What the adapters' factors become: joined along the rank axis for `paper`, else added index by index."""

    def __init__(self, variant: str, axis: int) -> None:
        self._joins = variant == "paper"
        self._axis = axis
        self._parts: list[Tensor] = []

    def add(self, values: Tensor, scale: Tensor | None = None) -> None:
        """Take the next adapter's factor times `scale`; an adapter of smaller rank counts as padded with zeros."""
        if self._joins or not self._parts:
            self._parts.append(values.clone() if scale is None else values * scale)
            return
        total = self._parts[0]
        missing = values.shape[self._axis] - total.shape[self._axis]
        if missing > 0:
            padding = (0, missing) if self._axis == -1 else (0, 0, 0, missing)
            total = self._parts[0] = torch.nn.functional.pad(total, padding)
        part = total.narrow(self._axis, 0, values.shape[self._axis])
        if scale is None:
            part.add_(values)
        else:
            part.addcmul_(values, scale)

    def result(self) -> Tensor:
        """The merged factor."""
        return self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts, dim=self._axis)


class _Pruned:
    """A pruned factor, and what pruning took from each row or column.

    B is pruned without its coefficient: a factor common to all entries cannot move the mask.
    """

    def __init__(self, x: Tensor, density: float, score: Tensor | None) -> None:
        self._before = x
        k = _cut(x, density)
        if k == 0:
            self.values = x
        elif score is not None:
            threshold = score.flatten(-2).kthvalue(k, dim=-1).values
            self.values = torch.where(score >= threshold[..., None, None], x, 0.0)
        else:
            threshold = select_magnitude(x.abs().flatten(-2), k)
            if x.ndim == 2:
                below = torch.nextafter(threshold, torch.zeros_like(threshold))
                self.values = torch.nn.functional.hardshrink(x, float(below))
            else:
                self.values = torch.where(x.abs() >= threshold[..., None, None], x, 0.0)

    def loss(self, axis: int) -> Tensor:
        """Sum of magnitudes along `axis` before pruning over the sum after it; inf where nothing is left."""
        rest = self.values.abs().sum(axis)
        return torch.where(rest > 0, self._before.abs().sum(axis) / rest, torch.inf)


def _cut(x: Tensor, density: float) -> int:
    return int(x.shape[-2] * x.shape[-1] * (1 - density))


class _Scores(NamedTuple):
    """Scores of the entries of every A_t and B_t; the highest are kept, as many as by magnitude."""

    a: list[Tensor]
    b: list[Tensor]


def _scores(stack: FactorStack, params: RobustMerge, draws: Draws) -> _Scores:
    """Scores of the ablation criteria."""
    if params.criterion == "random":
        return _Scores(
            [draws.uniform(t, "robustmerge prune A", x) for t, x in enumerate(stack.a)],
            [draws.uniform(t, "robustmerge prune B", x) for t, x in enumerate(stack.b)],
        )
    a = [stack.folded_a(t) for t in range(len(stack))]
    b = [stack.folded_b(t) for t in range(len(stack))]
    return _Scores(_agreement(a, _sum(a, -2), -2), _agreement(b, _sum(b, -1), -1))


def _sum(parts: Sequence[Tensor], axis: int) -> Tensor:
    total = _Collected("sum", axis)
    for part in parts:
        total.add(part)
    return total.result()


def _agreement(parts: Sequence[Tensor], total: Tensor, axis: int) -> list[Tensor]:
    """A score that puts entries of the total's sign before all others, larger magnitudes first within both groups."""
    scores: list[Tensor] = []
    for x in parts:
        sign = total.narrow(axis, 0, x.shape[axis]).sign()
        relative = x.double().abs() / x.double().abs().amax(dim=(-2, -1), keepdim=True).clamp_min(
            torch.finfo(torch.double).tiny
        )
        scores.append(relative + 2.0 * ((sign == x.sign()) & (sign != 0)))
    return scores


def _scales(losses: Sequence[Tensor], params: RobustMerge) -> list[Tensor]:
    """S_t of all adapters, clamped and normalised over the adapters that have the index."""
    sizes = [loss.shape[-1] for loss in losses]
    longest = max(sizes)
    joined = torch.stack(
        [torch.nn.functional.pad(loss, (0, longest - size)) for loss, size in zip(losses, sizes, strict=True)], -2
    )
    exists = torch.arange(longest, device=joined.device) < torch.tensor(sizes, device=joined.device)[:, None]
    finite = joined.isfinite() & exists
    scales = torch.where(finite, joined, 1.0)
    if params.clamp:
        scales = _clamp(scales, finite, params.clamp_quantile)
    scales = torch.where(exists, scales, 0.0)
    if params.normalize:
        scales = scales / scales.sum(-2, keepdim=True)
    return [scales[..., t, :size] for t, size in enumerate(sizes)]


def _clamp(scales: Tensor, finite: Tensor, quantile: float) -> Tensor:
    """A floor at the quantile over the finite entries; the others count as 1 and take the floor. No finite entry: 1."""
    count = finite.sum(-1, keepdim=True)
    ascending = torch.where(finite, scales, torch.inf).sort(dim=-1).values
    floors = torch.tensor([int(quantile * m) for m in range(scales.shape[-1] + 1)], device=scales.device)
    low = ascending.gather(-1, floors[count])
    high = ascending.gather(-1, (count - 1).clamp_min(0))
    return torch.where(count > 0, scales.clamp(low, high), 1.0)


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

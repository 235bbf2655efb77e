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
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..factors import FactorStack, LowRank
from ..method import Draws, Factor, Params
from ..select import kth_magnitude

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
    def _variant_decides_clamp(self) -> Self:
        if self.clamp is None:
            object.__setattr__(self, "clamp", self.variant == "official")
        return self


def merge_robust(stack: FactorStack, params: RobustMerge, draws: Draws) -> LowRank:
    """Merge one site by RobustMerge.

    Shapes: stack of n adapters -> b (..., d_out, k), a (..., k, d_in) with k = R for `paper`, else max r_t.
    Source: arXiv 2502.17159.
    """
    a = [x.to(stack.dtype) for x in stack.a]
    b = [x.to(stack.dtype) for x in stack.b]
    coefficients = [torch.as_tensor(c, dtype=stack.dtype, device=a[0].device) for c in stack.coefficients]
    a_kept, b_kept = _prune_all(a, b, coefficients, params, draws) if params.prune else (a, b)
    ranks = _rank_scales(a, a_kept, params)
    if params.scaling in ("A", "A+B"):
        a_kept = _times_columns(a_kept, _scales([_loss(x, k, -2) for x, k in zip(a, a_kept, strict=True)], params))
    if params.scaling in ("B", "A+B"):
        rows = _scales([_loss(x, k, -1) for x, k in zip(b, b_kept, strict=True)], params)
        b_kept = [x * s[..., :, None] for x, s in zip(b_kept, rows, strict=True)]
    b_kept = _times_columns(b_kept, [s * (c * params.gain)[..., None] for s, c in zip(ranks, coefficients, strict=True)])
    if params.variant == "paper":
        return LowRank(b=torch.cat(b_kept, dim=-1), a=torch.cat(a_kept, dim=-2))
    a_sum = _add(a_kept, -2)
    return LowRank(b=_add(b_kept, -1), a=a_sum * params.gain if params.variant == "official" else a_sum)


def _rank_scales(a: Sequence[Tensor], a_kept: Sequence[Tensor], params: RobustMerge) -> list[Tensor]:
    """What column i of B_t is multiplied by: Sbar_t[i], or 1 where another vector is in use."""
    if params.scaling == "inter":
        return _scales([_loss(x, k, -1) for x, k in zip(a, a_kept, strict=True)], params)
    ones = [torch.ones_like(x[..., 0]) for x in a]
    return _scales(ones, params) if params.scaling == "none" else ones


def _prune_all(
    a: list[Tensor], b: list[Tensor], coefficients: Sequence[Tensor], params: RobustMerge, draws: Draws
) -> tuple[list[Tensor], list[Tensor]]:
    """A~_t and B~_t, B without its coefficient: a positive factor cannot move a magnitude mask."""
    densities = params.each("density", len(a))
    if params.criterion == "magnitude":
        return (
            [_prune(x, density) for x, density in zip(a, densities, strict=True)],
            [_prune(x, density) for x, density in zip(b, densities, strict=True)],
        )
    if params.criterion == "random":
        a_scores = [draws.uniform(t, "robustmerge prune A", x) for t, x in enumerate(a)]
        b_scores = [draws.uniform(t, "robustmerge prune B", x) for t, x in enumerate(b)]
    else:
        folded = [x * c[..., None, None] for x, c in zip(b, coefficients, strict=True)]
        a_scores = _agreement(a, _add(a, -2), -2)
        b_scores = _agreement(folded, _add(folded, -1), -1)
    return (
        [_keep(x, score, density) for x, score, density in zip(a, a_scores, densities, strict=True)],
        [_keep(x, score, density) for x, score, density in zip(b, b_scores, densities, strict=True)],
    )


def _cut(x: Tensor, density: float) -> int:
    return int(x.shape[-2] * x.shape[-1] * (1 - density))


def _prune(x: Tensor, density: float) -> Tensor:
    k = _cut(x, density)
    if k == 0:
        return x
    threshold = kth_magnitude(x.flatten(-2), k)
    if x.ndim == 2:
        below = torch.nextafter(threshold, torch.zeros_like(threshold))
        return torch.nn.functional.hardshrink(x, float(below))
    return torch.where(x.abs() >= threshold[..., None, None], x, 0.0)


def _keep(x: Tensor, score: Tensor, density: float) -> Tensor:
    """Keep the entries of highest score, as many as magnitude pruning would keep without ties."""
    k = _cut(x, density)
    if k == 0:
        return x
    threshold = score.flatten(-2).kthvalue(k, dim=-1).values
    return torch.where(score >= threshold[..., None, None], x, 0.0)


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


def _loss(full: Tensor, kept: Tensor, axis: int) -> Tensor:
    """Sum of magnitudes along `axis` before pruning over the sum after it; inf where nothing is left."""
    rest = kept.abs().sum(axis)
    return torch.where(rest > 0, full.abs().sum(axis) / rest, torch.inf)


def _scales(losses: Sequence[Tensor], params: RobustMerge) -> list[Tensor]:
    """S_t, clamped and normalised over the adapters that have the index."""
    scales = [_clamp(s, params.clamp_quantile) if params.clamp else s.nan_to_num(posinf=1.0) for s in losses]
    if not params.normalize:
        return scales
    total = _add(scales, -1)
    return [s / total.narrow(-1, 0, s.shape[-1]) for s in scales]


def _clamp(loss: Tensor, quantile: float) -> Tensor:
    """A floor at the quantile over the finite entries; entries without a finite loss count as 1 and take the floor."""
    finite = loss.isfinite()
    count = finite.sum(-1, keepdim=True)
    ascending = loss.sort(dim=-1).values
    floors = torch.tensor([int(quantile * m) for m in range(loss.shape[-1] + 1)], device=loss.device)
    low = ascending.gather(-1, floors[count])
    high = ascending.gather(-1, (count - 1).clamp_min(0))
    bounded = torch.where(finite, loss, 1.0).clamp(low, high)
    return torch.where(count > 0, bounded, 1.0)


def _times_columns(parts: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
    return [x * s[..., None, :] for x, s in zip(parts, scales, strict=True)]


def _add(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Sum of tensors that differ in length along `axis`; shorter ones count as padded with zeros."""
    longest = max(parts, key=lambda x: x.shape[axis])
    out = torch.zeros_like(longest)
    for x in parts:
        out.narrow(axis, 0, x.shape[axis]).add_(x)
    return out


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

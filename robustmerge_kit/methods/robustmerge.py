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

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator

from ..factors import FactorStack, LowRank
from ..method import Draws, Factor, Params

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
    a_merged, a_losses = _Collected(params.variant, -2, apart=a_axis == -2), list[_Loss]()
    for kept, loss in _prune_each(stack.a, stack.dtype, params, a_axis, scores and scores.a):
        a_merged.add(kept)
        a_losses.append(loss)
    columns = _coefficients(stack) * params.gain
    if params.scaling in ("inter", "none"):
        columns = columns * _scales(a_losses, params)
    b_merged, b_losses = _Collected(params.variant, -1, apart=b_axis is not None), list[_Loss]()
    b_pruned = _prune_each(stack.b, stack.dtype, params, b_axis, scores and scores.b)
    for column, (kept, loss) in zip(columns[..., None, :].unbind(-3), b_pruned, strict=True):
        b_merged.add(kept, column[..., : kept.shape[-1]] if kept.shape[-1] < column.shape[-1] else column)
        b_losses.append(loss)
    if a_axis == -2:
        a_merged.scale(_scales(a_losses, params)[..., None, :].unbind(-3))
    if b_axis is not None:
        b_merged.scale(_scales(b_losses, params)[..., None].unbind(-3))
    a = a_merged.result()
    return LowRank(b=b_merged.result(), a=a * params.gain if params.variant == "official" else a)


class _Collected:
    """What the adapters' factors become: joined along the rank axis for `paper`, else added index by index.

    apart: parts are kept apart until the end, because `scale` will be called.
    """

    def __init__(self, variant: str, axis: int, apart: bool) -> None:
        self._joins = variant == "paper"
        self._apart = self._joins or apart
        self._axis = axis
        self._parts: list[torch.Tensor] = []

    def add(self, values: torch.Tensor, scale: torch.Tensor | None = None) -> None:
        """Take the next adapter's factor, times `scale`; the values are copied."""
        if self._apart or not self._parts:
            self._parts.append(values.clone() if scale is None else values * scale)
        else:
            self._parts[0] = _add(self._parts[0], values, scale, self._axis)

    def scale(self, scales: Sequence[torch.Tensor]) -> None:
        """Multiply every adapter's factor by its own scale."""
        self._parts = [part * scale for part, scale in zip(self._parts, scales, strict=True)]

    def result(self) -> torch.Tensor:
        """The merged factor."""
        if self._joins:
            return torch.cat(self._parts, dim=self._axis)
        total = self._parts[0]
        for part in self._parts[1:]:
            total = _add(total, part, None, self._axis)
        return total


def _add(total: torch.Tensor, values: torch.Tensor, scale: torch.Tensor | None, axis: int) -> torch.Tensor:
    """Add values * scale to total, in place where lengths along `axis` allow; the shorter one counts as padded with zeros."""
    missing = values.shape[axis] - total.shape[axis]
    if missing > 0:
        total = torch.nn.functional.pad(total, (0, missing) if axis == -1 else (0, 0, 0, missing))
    part = total if missing == 0 else total.narrow(axis, 0, values.shape[axis])
    if scale is None:
        part.add_(values)
    else:
        part.addcmul_(values, scale)
    return total


class _Loss(NamedTuple):
    """Sums of magnitudes along an axis, before pruning and after it; (..., size). Ones where no axis is looked along."""

    full: torch.Tensor
    rest: torch.Tensor


def _prune_each(
    factors: Sequence[torch.Tensor],
    dtype: torch.dtype,
    params: RobustMerge,
    axis: int | None,
    scores: list[torch.Tensor] | None,
) -> Iterator[tuple[torch.Tensor, _Loss]]:
    """Prune one factor after the other; each result is valid until the next one is asked for.

    B is pruned without its coefficient: a factor common to all entries cannot move the mask.
    """
    scratch = _Scratch(factors[0], dtype)
    for t, (x, density) in enumerate(zip(factors, params.each("density", len(factors)), strict=True)):
        if scratch.values.shape != x.shape:
            scratch = _Scratch(x, dtype)
        values = scratch.values.copy_(x)
        magnitudes = torch.abs(values, out=scratch.magnitudes)
        full = scratch.ones if axis is None else magnitudes.sum(axis)
        k = int(x.shape[-2] * x.shape[-1] * (1 - density)) if params.prune else 0
        if k == 0:
            yield values, _Loss(full, full)
            continue
        if scores is None:
            scratch.keep_largest(k)
        else:
            threshold = scores[t].flatten(-2).kthvalue(k, dim=-1).values
            values *= scores[t] >= threshold[..., None, None]
        yield values, _Loss(full, full if axis is None else torch.abs(values, out=magnitudes).sum(axis))


class _Scratch:
    """Two buffers that all factors of one shape pass through, so that they stay in the processor's caches."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype) -> None:
        self.values = torch.empty(like.shape, dtype=dtype, device=like.device)
        self.magnitudes = torch.empty_like(self.values)
        self.ones = self.values.new_ones(like.shape[:-1])
        self._flat = self.magnitudes.view(-1).numpy() if like.ndim == 2 and like.device.type == "cpu" else None

    def keep_largest(self, k: int) -> None:
        """Zero the values below the k-th smallest magnitude, in place; the magnitudes are used up."""
        if self._flat is None:
            threshold = self.magnitudes.flatten(-2).kthvalue(k, dim=-1).values
            self.values *= self.values.abs() >= threshold[..., None, None]
            return
        # Magnitudes sort like the integers of their bits, for which NumPy has the fastest selection.
        self._flat.view(f"i{self._flat.itemsize}").partition(k - 1)
        # One pass instead of a mask: hardshrink zeroes what is not greater than its bound, the float below the threshold.
        bound = np.nextafter(self._flat[k - 1], self._flat.dtype.type(0))
        torch.hardshrink(self.values, float(bound), out=self.values)


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
    total = _Collected("sum", axis, apart=False)
    for part in parts:
        total.add(part)
    signs = total.result().sign()
    scores: list[torch.Tensor] = []
    for x in parts:
        sign = signs.narrow(axis, 0, x.shape[axis])
        relative = x.double().abs() / x.double().abs().amax(dim=(-2, -1), keepdim=True).clamp_min(
            torch.finfo(torch.double).tiny
        )
        scores.append(relative + 2.0 * ((sign == x.sign()) & (sign != 0)))
    return scores


def _coefficients(stack: FactorStack) -> torch.Tensor:
    """The coefficients c_t, (..., n, 1)."""
    if all(isinstance(c, float | int) for c in stack.coefficients):
        return torch.tensor(stack.coefficients, dtype=stack.dtype, device=stack.b[0].device)[:, None]
    each = [torch.as_tensor(c, dtype=stack.dtype, device=stack.b[0].device).expand(stack.batch) for c in stack.coefficients]
    return torch.stack(each, -1)[..., None]


def _scales(losses: Sequence[_Loss], params: RobustMerge) -> torch.Tensor:
    """S_t of all adapters, clamped, and normalised over the adapters that have the index; 0 where one lacks it.

    An index that pruning emptied counts as unpruned.

    Shapes: n losses of (..., size_t) -> (..., n, max size).
    """
    sizes = [loss.full.shape[-1] for loss in losses]
    full, rest = (_stack_padded(parts, max(sizes)) for parts in zip(*losses, strict=True))
    finite = rest > 0
    scales = torch.where(finite, full / rest, 1.0)
    if params.clamp:
        scales = _clamp(scales, finite, params.clamp_quantile)
    if min(sizes) < max(sizes):
        exists = torch.arange(max(sizes), device=full.device) < torch.tensor(sizes, device=full.device)[:, None]
        scales = torch.where(exists, scales, 0.0)
    if params.normalize:
        scales = scales / scales.sum(-2, keepdim=True)
    return scales


def _stack_padded(parts: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    return torch.stack([torch.nn.functional.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x for x in parts], -2)


def _clamp(scales: torch.Tensor, finite: torch.Tensor, quantile: float) -> torch.Tensor:
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

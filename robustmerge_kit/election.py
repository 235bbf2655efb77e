"""What element-wise methods share: trimming by magnitude, electing a sign, adding up what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field

from . import native
from .factors import Weights
from .method import Draws, Of, Stats, Whole

Density = Annotated[float, Field(gt=0, le=1)]
"""Fraction of the entries that is KEPT."""

Trim = Literal["topk", "kth"]


def magnitude(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    """|x|: what a trim looks at."""
    return x.abs()


def survey_trim(whole: Whole, densities: Sequence[float], trim: Trim = "topk", of: Of = magnitude) -> Stats:
    """Per adapter the least magnitude that stays, exactly; `last` is the flat index up to which its equals stay.

    topk: max(1, int(density * numel)) entries stay, equal magnitudes by lower index. kth: entries of at least the
    (numel - int(density * numel))-th smallest magnitude stay, with all their equals. Nothing is surveyed at density 1.

    Source: arXiv 2306.01708; topk as in mergekit and PEFT.
    """
    if all(density == 1 for density in densities):
        return {}
    keep = [int(density * numel) for density, numel in zip(densities, whole.numel, strict=True)]
    if trim == "kth":
        (order,) = whole.order(of, [max(0, n - k - 1) for k, n in zip(keep, whole.numel, strict=True)])
        return {"least": order.value}
    return survey_largest(whole, of, torch.tensor([max(1, k) for k in keep]), torch.tensor(whole.numel))


def survey_largest(whole: Whole, of: Of, keep: torch.Tensor, numel: torch.Tensor) -> Stats:
    """Exactly the `keep` largest of `of`, equal ones by lower index: the least of them, and the index of its last equal.

    keep 0 keeps nothing. `last` is absent where no equal is left out.

    Shapes: keep, numel broadcast to (..., m); results (..., m).
    """
    position = (numel - keep.clamp_min(1)).clamp_min(0)
    (order,) = whole.order(of, position)
    left_out = position.to(order.below.device) - order.below
    least = torch.where(keep.to(order.value.device) > 0, order.value, torch.inf)
    # Whether zeros count as kept is all the same.
    among_equals = (left_out > 0) & (order.value > 0)
    if not bool(among_equals.any()):
        return {"least": least}
    last = whole.locate(of, order.value, torch.where(among_equals, order.equal - left_out - 1, -1))
    return {"least": least, "last": torch.where(among_equals, last, torch.iinfo(torch.int64).max)}


def trim(x: Float[torch.Tensor, "*batch n rows cols"], stats: Stats, draws: Draws) -> Float[torch.Tensor, "*batch n rows cols"]:
    """X where it stays according to `survey_trim`, else 0.

    Shapes: (..., n, rows, cols) -> the same.
    """
    if "least" not in stats:
        return x
    bounds = _bounds(x, stats["least"].to(x.dtype), stats.get("last"), draws) if _suits(x) else None
    if bounds is not None:
        return native.trim(x, bounds.expand(x.shape[0]).contiguous())
    return x * within(x.abs(), stats["least"], stats.get("last"), draws)


def _suits(x: torch.Tensor) -> bool:
    return x.ndim == 3 and x.dtype == torch.float32 and native.fits(x)


def _bounds(x: torch.Tensor, least: torch.Tensor, last: torch.Tensor | None, draws: Draws) -> torch.Tensor | None:
    """The least magnitude that stays in this block, per adapter; None where some equals of one stay and others do not."""
    if last is None:
        return least
    rows, cols = x.shape[-2:]
    first = draws.first_entry(cols)
    if bool(((first <= last) & (last < first + rows * cols - 1)).any()):
        return None
    return torch.where(last < first, torch.nextafter(least, torch.full_like(least, torch.inf)), least)


def within(
    values: Float[torch.Tensor, "*batch m rows cols"], least: torch.Tensor, last: torch.Tensor | None, draws: Draws
) -> Float[torch.Tensor, "*batch m rows cols"]:
    """Mask, 1 or 0 in the dtype of `values`: values above `least`, and those equal to it whose flat index is at most `last`.

    Shapes: values (..., m, rows, cols), least and last (..., m) -> (..., m, rows, cols).
    """
    least = least.to(values.dtype)[..., None, None]
    below = torch.nextafter(least, torch.full_like(least, -torch.inf))
    if last is None:
        return positive(values - below)
    rows, cols = values.shape[-2:]
    first, last = draws.first_entry(cols), last[..., None, None]
    stop = first + rows * cols
    if bool(((first <= last) & (last < stop - 1)).any()):
        index = torch.arange(first, stop, device=values.device).reshape(rows, cols)
        return ((values > least) | ((values == least) & (index <= last))).to(values.dtype)
    # The last equal that stays lies in another block: here either all of them stay, or none.
    return positive(values - torch.where(last < first, least, below))


def positive(x: Float[torch.Tensor, "*shape"]) -> Float[torch.Tensor, "*shape"]:
    """1 where x > 0, else 0, in the dtype of x; overwrites x.

    On CPU torch's comparisons and its arithmetic with booleans take many times longer than this.

    Shapes: any -> the same.
    """
    return x.sign_().relu_()


def elect(x: Float[torch.Tensor, "*batch n rows cols"]) -> Float[torch.Tensor, "*batch rows cols"]:
    """The sign of the sum over the adapters, entry by entry, +1 where it is 0.

    Shapes: (..., n, rows, cols) -> (..., rows, cols) of +1 and -1.
    """
    return torch.where(x.sum(-3) >= 0, 1.0, -1.0).to(x.dtype)


def merge_elected(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, normalize: bool
) -> Float[torch.Tensor, "*batch rows cols"]:
    """The sum of the entries whose sign is the elected one; `normalize` divides by the sum of their |weight|, 1 where none.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    Differs: mergekit divides by the signed sum of weights, which flips or explodes with negative ones.
    """
    if _suits(x):
        return native.elect(x, torch.tensor(weights.each, dtype=x.dtype).abs() if normalize else None)
    sign = elect(x)
    agreeing = (x * sign[..., None, :, :]).relu_()
    total = agreeing.sum(-3) * sign
    if not normalize:
        return total
    size = torch.tensor(weights.each, dtype=x.dtype, device=x.device).abs()[:, None, None]
    mass = agreeing.sign_().mul_(size).sum(-3)
    return total / torch.where(mass > 0, mass, 1.0)


def merge_sum(
    x: Float[torch.Tensor, "*batch n rows cols"], weights: Weights, normalize: bool
) -> Float[torch.Tensor, "*batch rows cols"]:
    """The sum over the adapters; `normalize` divides by the sum of all weights, those of zero deltas included.

    Shapes: (..., n, rows, cols) -> (..., rows, cols).
    """
    total = x.sum(-3)
    return total / weights.total if normalize else total


def refuse_cancelling(normalize: bool, weights: Sequence[float]) -> str | None:
    """Why weights that cancel cannot be normalised, or None."""
    if normalize and abs(sum(weights)) < 1e-8 * sum(map(abs, weights)):
        return f"the weights {', '.join(f'{w:g}' for w in weights)} sum to zero and cannot be normalised; set normalize: false"
    return None


Rescale = Literal["inverse", "l1", "none"]


def survey_l1(whole: Whole, masked: Of) -> Stats:
    """What `rescale: l1` multiplies by: ||x||_1 / ||masked x||_1 per adapter, 1 where either is 0."""
    before, after = whole.total(magnitude), whole.total(lambda x, draws: masked(x, draws).abs())
    usable = (before > 0) & (after > 0)
    return {"l1": torch.where(usable, before / torch.where(usable, after, 1.0), 1.0)}

"""Cluster rank directions: LoRA-LEGO takes every direction of every adapter as a unit and keeps k cluster centres.

    x_i    [row i of A_t ; column i of c_t B_t], all R = sum r_t of them
    mu_c   centres of k-means over the x_i (k-means++ starts, Lloyd, least inertia of n_init)
    y_c    mu_c * mean over the units i of cluster c of max|x_i| / (max|mu_c| + 1e-8)
    A', B' the two parts of the y_c, B' times sqrt(R / k)           `output_scale: single`: sqrt(r / k), r the mean rank
    R <= k: all units as they are, no scale

Parameters:
    rank           k; default: the largest rank among the adapters
    n_init         10      starts; keyed by seed and site, the same for any order of the adapters
    max_iter       300
    output_scale   total | single

Edge cases: depends on how each delta is split into B and A, since the norms of both decide the distances. Not homogeneous.
Differs: another port scales by sqrt(r / k) and clusters normalised units.
Source: arXiv 2409.16167; ZhengbaoHe/compress-then-merge 6017d1e.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field

from ..factors import FactorStack, LowRank
from ..method import Draws, Factor, Params


class LoraLego(Params):
    """Settings of lora_lego."""

    rank: Annotated[int, Field(ge=1)] | None = None
    n_init: Annotated[int, Field(ge=1, le=1000)] = 10
    max_iter: Annotated[int, Field(ge=1, le=100_000)] = 300
    output_scale: Literal["total", "single"] = "total"


def merge_lego(stack: FactorStack, params: LoraLego, draws: Draws) -> LowRank:
    """Merge one site by LoRA-LEGO.

    Shapes: stack of n adapters -> b (..., d_out, k), a (..., k, d_in).
    Source: arXiv 2409.16167.
    """
    k = params.rank or max(stack.ranks)
    units = torch.cat([torch.cat([stack.folded_a(t), stack.folded_b(t).mT], -1) for t in range(len(stack))], -2)
    total = units.shape[-2]
    if total <= k:
        return _split(units, stack.d_in, 1.0)
    starts = draws.uniform(None, "lora_lego start", units[..., : params.n_init, :k].new_empty((*stack.batch, params.n_init, k)))
    flat, flat_starts = units.reshape(-1, *units.shape[-2:]), starts.reshape(-1, params.n_init, k).double()
    centres = torch.stack([_centres(x, u, params.max_iter) for x, u in zip(flat, flat_starts, strict=True)])
    centres = centres.reshape(*stack.batch, k, units.shape[-1])
    kept = total if params.output_scale == "total" else total / len(stack)
    return _split(centres, stack.d_in, (kept / k) ** 0.5)


def _split(units: torch.Tensor, d_in: int, scale: float) -> LowRank:
    return LowRank(b=units[..., d_in:].mT * scale, a=units[..., :d_in])


def _centres(
    units: Float[torch.Tensor, "R d"], starts: Float[torch.Tensor, "n_init k"], max_iter: int
) -> Float[torch.Tensor, "k d"]:
    """Rescaled cluster centres; while clustering, a centre is a row of mixing weights over the units."""
    # By their bytes, so that the order of the adapters does not matter.
    order = sorted(range(len(units)), key=lambda i: units[i].cpu().numpy().tobytes())
    units = units[order]
    gram = units.double() @ units.double().mT
    best = min((_lloyd(gram, _first(gram, start), max_iter) for start in starts), key=lambda found: found[0])
    # A row of the mixing weights averages over the units of its cluster.
    centres = best[1] @ units.double()
    size = best[1] @ units.double().abs().amax(-1, keepdim=True)
    return (centres * size / (centres.abs().amax(-1, keepdim=True) + 1e-8)).to(units.dtype)


def _first(gram: Float[torch.Tensor, "R R"], start: Float[torch.Tensor, "k"]) -> Float[torch.Tensor, "k R"]:
    """k-means++: each next centre is a unit drawn with chance proportional to its squared distance from those chosen."""
    size = gram.diagonal()
    total = len(gram)
    chosen = [min(int(start[0] * total), total - 1)]
    nearest = (size - 2 * gram[chosen[0]] + size[chosen[0]]).clamp_min(0)
    for u in start[1:]:
        reached = nearest.cumsum(0)
        chosen.append(min(int(torch.searchsorted(reached, u * reached[-1], right=True)), total - 1))
        nearest = torch.minimum(nearest, (size - 2 * gram[chosen[-1]] + size[chosen[-1]]).clamp_min(0))
    return torch.nn.functional.one_hot(torch.tensor(chosen, device=gram.device), total).to(gram)


def _lloyd(
    gram: Float[torch.Tensor, "R R"], mixing: Float[torch.Tensor, "k R"], max_iter: int
) -> tuple[float, Float[torch.Tensor, "k R"]]:
    """Inertia and centres after Lloyd's iteration has come to rest; a centre that loses all its units stays where it is."""
    labels = torch.full((len(gram),), -1, device=gram.device)
    distance = gram
    for _ in range(max_iter):
        inner = mixing @ gram
        distance = gram.diagonal() - 2 * inner + (inner * mixing).sum(-1, keepdim=True)
        nearest = distance.argmin(0)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        members = torch.nn.functional.one_hot(labels, len(mixing)).to(gram).mT
        count = members.sum(-1, keepdim=True)
        mixing = torch.where(count > 0, members / count.clamp_min(1), mixing)
    return float(distance.amin(0).sum()), mixing


def _rank(ranks: Sequence[int], params: LoraLego) -> int:
    return min(params.rank or max(ranks), sum(ranks))


METHODS = (
    Factor(name="lora_lego", paper="2409.16167", params=LoraLego, merge=merge_lego, rank=_rank, random=lambda params: True),
)

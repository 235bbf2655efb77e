"""Steps that only change lengths: norm_balance, norm_cap (pre) and rescale_output (post).

m_t is the Frobenius norm of the weighted delta D_t, over the deltas that are not zero.

    norm_balance     D_t <- D_t (beta + (1 - beta) mean(m) / m_t)         `beta` 0.25; 1: unchanged, 0: equal norms
    norm_cap         D_t <- D_t min(1, c / m_t), c = median(m) + k MAD(m)  `k` 3; MAD is the median of |m - median(m)|
    rescale_output   D <- D * to / ||D||                                   `to`: mean_norm, max_norm, median_norm, a number

The median of an even number of values is the mean of the two in the middle. A merged delta of zero stays zero.
norm_balance is the balancing of CtM (arXiv 2606.03723); the other two are our own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field

from .. import factors
from ..factors import Core, FactorStack, Spectral
from ..method import Params
from .step import Post, Pre


class NormBalance(Params):
    """Settings of norm_balance."""

    beta: Annotated[float, Field(ge=0, le=1)] = 0.25


class NormCap(Params):
    """Settings of norm_cap."""

    k: Annotated[float, Field(ge=0)] = 3.0


class RescaleOutput(Params):
    """Settings of rescale_output."""

    to: Literal["mean_norm", "max_norm", "median_norm"] | Annotated[float, Field(gt=0)]


def balance(stack: FactorStack, params: NormBalance) -> FactorStack:
    """Pull the norms of the deltas towards their mean.

    Source: arXiv 2606.03723, balancing of CtM.
    """
    m = factors.norms(stack)
    wanted = params.beta * m + (1 - params.beta) * m.mean(-1, keepdim=True)
    return scaled(stack, torch.where(m > 0, factors.ratio(wanted, m), 1.0))


def cap(stack: FactorStack, params: NormCap) -> FactorStack:
    """Shorten deltas whose norm is an outlier."""
    m = factors.norms(stack)
    middle = _median(m)
    limit = middle + params.k * _median((m - middle).abs())
    return scaled(stack, torch.where(m > limit, factors.ratio(limit, m), 1.0))


def rescale(delta: Spectral, core: Core, params: RescaleOutput) -> Spectral:
    """Give the merged delta the norm asked for."""
    if not isinstance(params.to, str):
        return lengthened(delta, core.norms.new_full(core.norms.shape[:-1], params.to))
    measures = {"mean_norm": core.norms.mean(-1), "max_norm": core.norms.amax(-1), "median_norm": _median(core.norms)[..., 0]}
    return lengthened(delta, measures[params.to])


def scaled(stack: FactorStack, by: Float[torch.Tensor, "*batch n"]) -> FactorStack:
    """The stack whose deltas are multiplied; factors stay untouched, so that shared ones stay shared."""
    each = tuple(c * by[..., t] for t, c in enumerate(stack.coefficients))
    return replace(stack, coefficients=each if stack.batch else tuple(float(c) for c in each))


def lengthened(delta: Spectral, to: Float[torch.Tensor, "*batch"]) -> Spectral:
    """The delta brought to a Frobenius norm; zero stays zero."""
    return replace(delta, s=delta.s * factors.ratio(to, factors.norm(delta))[..., None])


def _median(x: torch.Tensor) -> torch.Tensor:
    return torch.quantile(x, 0.5, dim=-1, keepdim=True)


NORM_BALANCE = Pre(name="norm_balance", paper="2606.03723", params=NormBalance, apply=balance)
NORM_CAP = Pre(name="norm_cap", paper="rmkit", params=NormCap, apply=cap)
RESCALE_OUTPUT = Post(name="rescale_output", paper="rmkit", params=RescaleOutput, apply=rescale)

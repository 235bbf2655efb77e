"""One site from factors to result: pre -> method (in its space) -> post -> rank. Pure, and batched over sites of one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from .factors import (
    Core,
    FactorStack,
    InCore,
    LowRank,
    Spectral,
    concat,
    core,
    decompose,
    gram,
    norms,
    pad,
    rowwise_gram,
)
from .method import Coefficient, Draws, Equivariant, Factor
from .plan import SiteStep

Delta = LowRank | InCore | Spectral


@dataclass(frozen=True)
class Finished:
    """A merged site at its final rank, before rounding to the output dtype.

    Shapes: factors as LowRank; retained (...,) share of the squared norm that truncation kept, 1 where nothing was cut.
    """

    factors: LowRank
    retained: Float[Tensor, "*batch"]


def merge_site(stack: FactorStack, step: SiteStep, draws: Draws) -> Delta:
    """The merged delta of a site at the method's own rank.

    Shapes: stack (..., r_t, d_in) and (..., d_out, r_t) -> delta (..., d_out, d_in), factored.
    """
    restores: list[tuple[Callable[[Spectral, Tensor], Spectral], Tensor]] = []
    for pre, params in step.pre:
        if pre.restore is not None:
            restores.append((pre.restore, norms(stack)))
        stack = pre.apply(stack, params)
    shared = _Shared(stack)
    delta = _apply(shared, step, draws)
    if not restores and not step.post:
        return delta
    spectral = decompose(delta)
    for restore, before in reversed(restores):
        spectral = restore(spectral, before)
    for post, params in step.post:
        spectral = post.apply(spectral, shared.core, params)
    return spectral


class _Shared:
    """A stack and its core, which is computed once however many of method and post steps ask for it."""

    def __init__(self, stack: FactorStack) -> None:
        self.stack = stack

    @cached_property
    def core(self) -> Core:
        return core(self.stack)


def _apply(site: _Shared, step: SiteStep, draws: Draws) -> LowRank | InCore:
    match step.method:
        case Coefficient() as method:
            return _combine(site.stack, method, step)
        case Equivariant() as method:
            return InCore(site.core, method.merge(site.core, site.stack.weights, step.params))
        case Factor() as method:
            return method.merge(site.stack, step.params, draws)
        case _:
            raise TypeError(f"{step.method.name} is of no known kind")


def _combine(stack: FactorStack, method: Coefficient, step: SiteStep) -> LowRank:
    if method.rowwise(step.params):
        products = rowwise_gram(stack)
    elif method.needs_gram:
        products = gram(stack)
    else:
        products = torch.zeros(*stack.batch, len(stack), len(stack))
    return concat(stack, method.merge(products, stack.weights, step.params))


def finish(delta: Delta, cut: int | None, width: int) -> Finished:
    """Truncate to rank `cut` (None: not at all) by the best approximation, then pad with zeros to `width`."""
    if isinstance(delta, LowRank) and (cut is None or cut >= delta.rank):
        return Finished(pad(delta, width), torch.ones(delta.a.shape[:-2]))
    spectral = delta if isinstance(delta, Spectral) else decompose(delta)
    kept = width if cut is None else cut
    return Finished(pad(spectral.cut(kept), width), retained_energy(spectral, kept))


def singular_values(delta: Delta) -> Float[Tensor, "*batch k"]:
    """Singular values of a merged delta, float64, descending, zero beyond the numerical rank."""
    return (delta if isinstance(delta, Spectral) else decompose(delta)).s.double()


def retained_energy(spectral: Spectral, k: int) -> Float[Tensor, "*batch"]:
    """sum_{j<=k} S_j^2 / sum_j S_j^2, 1 for a zero delta."""
    energy = spectral.s.double().square()
    total = energy.sum(-1)
    return torch.where(total > 0, energy[..., :k].sum(-1) / total.clamp_min(torch.finfo(torch.double).tiny), 1.0)


@dataclass(frozen=True)
class Rounding:
    """Squared norms, summable over sites: of the delta, and of what rounding its factors changed."""

    norm2: float
    error2: float


def measure_rounding(exact: LowRank, rounded: LowRank) -> Rounding:
    """||B A||^2 and ||B A - B' A'||^2, from products of size rank x rank.

    The error is taken as (B - B') A + B' (A - A'), which does not cancel.

    Shapes: both (d_out, k) and (k, d_in), no batch axis.
    """
    b, a = exact.b.float(), exact.a.float()
    norm2 = float(((b.mT @ b).double() * (a @ a.mT).double()).sum())
    if rounded.b.dtype == exact.b.dtype:
        return Rounding(norm2, 0.0)
    b_rounded, a_rounded = rounded.b.float(), rounded.a.float()
    left = torch.cat((b - b_rounded, b_rounded), dim=-1)
    right = torch.cat((a, a - a_rounded), dim=-2)
    error2 = float(((left.mT @ left).double() * (right @ right.mT).double()).sum())
    return Rounding(norm2, max(error2, 0.0))

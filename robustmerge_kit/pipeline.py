"""One site from factors to result: pre -> method (in its space) -> post -> rank. Pure, and batched over sites of one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from . import dora, native, spaces
from .compress import compress, compress_to_energy
from .dora import OnBase
from .draws import KeyedDraws
from .factors import Core, FactorStack, InCore, LowRank, Spectral, concat, core, decompose, gram, norms, pad, rowwise_gram
from .method import Coefficient, Elementwise, Equivariant, Factor
from .plan import SiteStep
from .spaces import Dense, Surveyed

LARGE = 1024
"""Rows and columns from which rounding is measured term by term where terms are orthogonal."""

ROUNDING = 1e-9
"""Share of a dense delta's energy that is taken for rounding, not for directions."""

Array = NDArray[np.float64]

Delta = LowRank | InCore | Spectral | Dense

MakeCore = Callable[[FactorStack], Core]
"""Gives the exact small core of a stack."""


@dataclass(frozen=True)
class MergedSite:
    """A merged delta at its own rank. `retained` is less than 1 where a dense delta was compressed before post steps.

    approximated: the share of energy kept of every DoRA delta that factors had to stand for, None for all others.
    """

    delta: Delta
    retained: Float[torch.Tensor, "*batch"]
    approximated: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A merged site at its final rank, before rounding to the output dtype.

    orthogonal: the columns of B are orthogonal to each other, and so are the rows of A.

    Shapes: factors as LowRank; retained (...,) share of the squared norm that truncation kept, 1 where nothing was cut.
    """

    factors: LowRank
    retained: Float[torch.Tensor, "*batch"]
    orthogonal: bool


class PreparedSite:
    """A stack after the pre steps, with its core, which is computed once however many steps ask for it.

    base: what DoRA deltas take from the base weight, None where there are none or factors stand for them. core_of: what gives
    the core of the factors handed over; asked only where they are still those of the stack after the pre steps.
    """

    def __init__(
        self, stack: FactorStack, step: SiteStep, draws: KeyedDraws, base: OnBase | None = None, core_of: MakeCore = core
    ) -> None:
        given = stack
        self.approximated: tuple[float | None, ...] = ()
        if base is not None and not step.on_deltas:
            stack, self.approximated = dora.as_factors(stack, base, draws)
            base = None
        self.base = base
        self.restores: list[tuple[Callable[[Spectral, torch.Tensor], Spectral], torch.Tensor]] = []
        for pre, params in step.pre:
            if pre.restore is not None:
                self.restores.append((pre.restore, norms(stack)))
            stack = pre.apply(stack, params)
        self.stack = stack
        self.step = step
        self._core_of = core_of if stack.a is given.a and stack.b is given.b else core

    @cached_property
    def core(self) -> Core:
        """The exact small core of the stack."""
        return self._core_of(self.stack)

    def represent(self) -> spaces.Represented:
        """The stack in the space the step names."""
        assert self.step.space is not None
        name, options = self.step.space
        if self.base is not None:
            return dora.represent_full(self.stack, self.base)
        return spaces.represent(name, options, self.stack, None if name in ("full", "factor") else self.core)


def merge_site(
    stack: FactorStack,
    step: SiteStep,
    draws: KeyedDraws,
    surveyed: Surveyed | None = None,
    base: OnBase | None = None,
    core_of: MakeCore = core,
) -> MergedSite:
    """The merged delta of a site; `surveyed` holds the statistics of all sites for methods with `scope: global`.

    base: what the deltas take from the base weight besides their factors, where there are DoRA adapters. core_of: gives the
    core of this stack, whatever its coefficients.

    Shapes: stack (..., r_t, d_in) and (..., d_out, r_t) -> delta (..., d_out, d_in).
    """
    site = PreparedSite(stack, step, draws, base, core_of)
    delta = _apply(site, draws, surveyed)
    whole = torch.ones(stack.batch, dtype=torch.float64)
    if not site.restores and not step.post:
        return MergedSite(delta, whole, site.approximated)
    spectral, retained = _decompose(delta, sum(step.ranks), draws)
    for restore, before in reversed(site.restores):
        spectral = restore(spectral, before)
    for post, params in step.post:
        spectral = post.apply(spectral, site.core, params)
    return MergedSite(spectral, retained, site.approximated)


def _apply(site: PreparedSite, draws: KeyedDraws, surveyed: Surveyed | None) -> LowRank | InCore | Dense:
    step, stack = site.step, site.stack
    match step.method:
        case Coefficient() as method:
            return _combine(site, method)
        case Equivariant() as method:
            return InCore(site.core, method.merge(site.core, stack.weights, step.params))
        case Elementwise() as method:
            return spaces.merge(method, site.represent(), stack.weights, step.params, draws, surveyed)
        case Factor() as method:
            return method.merge(stack, step.params, draws)
        case _:
            raise TypeError(f"{step.method.name} is of no known kind")


def _combine(site: PreparedSite, method: Coefficient) -> LowRank | InCore | Dense:
    step, stack = site.step, site.stack
    if site.base is not None:
        return _combine_on_base(site, site.base, method)
    if method.rowwise(step.params):
        products = rowwise_gram(stack)
    elif method.needs_gram:
        products = gram(stack)
    else:
        products = torch.zeros(*stack.batch, len(stack), len(stack))
    coefficients = method.merge(products, stack.weights, step.params)
    return concat(stack, coefficients) if step.space is None else spaces.combine(site.represent(), coefficients)


def _combine_on_base(site: PreparedSite, base: OnBase, method: Coefficient) -> Dense:
    step, stack = site.step, site.stack
    if method.rowwise(step.params):
        products = dora.rowwise_gram(stack, base)
    elif method.needs_gram:
        products = dora.gram(stack, base)
    else:
        products = torch.zeros(len(stack), len(stack))
    return dora.combine(stack, base, method.merge(products, stack.weights, step.params)).dense(base.weight)


def _decompose(delta: Delta, rank: int, draws: KeyedDraws) -> tuple[Spectral, Float[torch.Tensor, "*batch"]]:
    """Singular values and vectors, and the share of the energy they hold: a dense delta is compressed to `rank`."""
    if not isinstance(delta, Dense):
        spectral = delta if isinstance(delta, Spectral) else decompose(delta)
        return spectral, torch.ones(spectral.s.shape[:-1], dtype=torch.float64)
    found = compress(delta, rank, draws)
    return found.spectral, _share(found.spectral.s.double().square().sum(-1), found.energy)


def finish(merged: MergedSite, step: SiteStep, draws: KeyedDraws) -> Finished:
    """Truncate to the step's rank by the best approximation, then pad with zeros to the rank it is written with."""
    delta = merged.delta
    if isinstance(delta, LowRank) and (step.cut is None or step.cut >= delta.rank):
        return Finished(pad(delta, step.width), merged.retained, orthogonal=False)
    kept = step.full_rank if step.cut is None else step.cut
    spectral, held = _decompose(delta, kept, draws)
    energy = spectral.s.double().square()
    share = _share(energy[..., :kept].sum(-1), energy.sum(-1))
    factors = pad(spectral.cut(min(kept, step.width)), step.width)
    return Finished(factors, merged.retained.to(share) * held * share, orthogonal=True)


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Part / whole, 1 where the whole is 0."""
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(torch.double).tiny), 1.0).clamp_max(1.0)


def singular_values(
    merged: MergedSite, step: SiteStep, energy: float | None, draws: KeyedDraws
) -> Float[torch.Tensor, "*batch k"]:
    """Singular values of a merged delta, float64, descending, zero beyond the numerical rank.

    Of a dense delta only the leading ones: as many as hold the share `energy`, followed by one value that stands for all the
    others together, so that shares are those of the whole; or the sum of the ranks.
    """
    delta, rank = merged.delta, sum(step.ranks)
    if isinstance(delta, Dense) and energy is not None:
        found = compress_to_energy(delta, energy, rank, draws)
        values = found.spectral.s.double()
        others = found.energy - values.square().sum()
        return torch.cat([values, torch.where(others > ROUNDING * found.energy, others, 0.0).sqrt()[None]])
    return _decompose(delta, rank, draws)[0].s.double()


def spectral(merged: MergedSite, rank: int, draws: KeyedDraws) -> tuple[Spectral, Float[torch.Tensor, "*batch"]]:
    """Singular values and vectors of a merged delta, and the share of its energy that they hold.

    The share is less than 1 only where the delta is, or was, dense: of a dense one the leading `rank` directions are found.
    """
    found, held = _decompose(merged.delta, rank, draws)
    return found, merged.retained.to(held) * held


@dataclass(frozen=True)
class Rounding:
    """Squared norms, summable over sites: of the delta, and of what rounding its factors changed."""

    norm2: float
    error2: float


# What the dtype cannot hold comes out as infinite or NaN here, which whoever asks refuses; NumPy need not warn of it.
@np.errstate(invalid="ignore", over="ignore")
def measure_rounding(exact: LowRank, rounded: LowRank, orthogonal: bool) -> Rounding:
    """||B A||^2 and ||B A - B' A'||^2, from products of size rank x rank.

    The error is taken as (B - B') A + B' (A - A'), which does not cancel. Of large `orthogonal` factors it is the sum over the
    terms b_j a_j, which are then orthogonal up to the rounding of their entries: the products left out are a share of
    1/min(d_out, d_in), with either sign.

    Shapes: both (d_out, k) and (k, d_in), no batch axis.
    """
    b, a = exact.b.float(), exact.a.float()
    if rounded.b.dtype == exact.b.dtype:
        return Rounding(float(((b.mT @ b).double() * (a @ a.mT).double()).sum()), 0.0)
    if orthogonal and min(b.shape[0], a.shape[1]) >= LARGE:
        return _rounding_of_terms(LowRank(b, a), rounded)
    k = a.shape[0]
    left, right = b.new_empty(b.shape[0], 2 * k), a.new_empty(2 * k, a.shape[1])
    left[:, k:], right[k:] = rounded.b, rounded.a
    torch.sub(b, left[:, k:], out=left[:, :k])
    torch.sub(a, right[k:], out=right[k:])
    right[:k] = a
    # Small from here on: one way to the host, and arithmetic that does not hand the interpreter around.
    left2, right2 = (product.cpu().numpy().astype(np.float64) for product in (left.mT @ left, right @ right.mT))
    # B is the sum of the two halves of `left`, so B^T B is that of the four quarters of its product.
    b2 = left2.reshape(2, k, 2, k).sum((0, 2))
    return Rounding(float((b2 * right2[:k, :k]).sum()), max(float((left2 * right2).sum()), 0.0))


def _rounding_of_terms(exact: LowRank, rounded: LowRank) -> Rounding:
    b2, lost_b2, along_b = _losses(exact.b.mT, rounded.b.mT)
    a2, lost_a2, along_a = _losses(exact.a, rounded.a)
    # (B - B') A + B' (A - A') term by term, with B' = B - (B - B').
    kept_b2, across_b = b2 - 2 * along_b + lost_b2, along_b - lost_b2
    error2 = lost_b2 * a2 + kept_b2 * lost_a2 + 2 * across_b * along_a
    return Rounding(float((b2 * a2).sum()), max(float(error2.sum()), 0.0))


def _losses(exact: torch.Tensor, rounded: torch.Tensor) -> Array:
    """Of every row: the squared norm, that of the loss, and the inner product of the two; (3, rows)."""
    if native.fits(exact) and native.fits(rounded):
        return native.losses(exact, rounded).T
    lost = exact - rounded.float()
    sums = [(x * y).sum(1, dtype=torch.float64) for x, y in ((exact, exact), (lost, lost), (exact, lost))]
    return torch.stack(sums).cpu().numpy()

"""DoRA: adapters that scale the rows of the adapted weight, so that their delta depends on the base.

W' = diag(m / ||W + s B A||_row) (W + s B A), with the norm of a row over all its entries. The delta is exactly

    D = W' - W = diag(g) W + B' A        sigma = m / ||W + s B A||_row,  g = sigma - 1,  B' = diag(sigma) s B

A row of W + s B A that is zero stays zero (sigma = 0). W stands for the base weight seen as (d_out, d_in): transposed for an
embedding and for weights stored [in, out], flattened behind the first axis for a convolution.

Sums of such deltas, and element-wise methods on the deltas themselves, are exact. Every other method works on factors: there
D_t is replaced by its best approximation of a rank between r_t and 4 r_t, the smallest that keeps 99.9 % of its energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float

from .compress import compress
from .draws import KeyedDraws
from .factors import FactorStack, LowRank, concat, ratio
from .ranks import energy_rank
from .spaces import OPTIONS, Dense, Represented, block_rows, represent

SHARE = 0.999
"""Share of a delta's energy that its factors are meant to keep."""
WIDEST = 4
"""Times the adapter's own rank that its factors may have at most."""
CANCELLED = 1e-13
"""A row of W + s B A this small beside the row of W is what rounding left of zero."""
TILE = 1 << 20
"""Entries of the base weight that are looked at together in float64."""

Rows = Callable[[int, int], "torch.Tensor"]
"""Rows start to stop of the base weight seen as (d_out, d_in), in any floating dtype."""


@dataclass(frozen=True)
class RowScaled:
    """A delta diag(g) W + B A of a base weight W.

    Shapes: g (d_out,) float64; low as LowRank, no batch axis.
    """

    g: Float[torch.Tensor, " d_out"]
    low: LowRank

    def rows(self, start: int, stop: int, weight: Float[torch.Tensor, "rows d_in"]) -> Float[torch.Tensor, "rows d_in"]:
        """Rows start to stop, from the same rows of the base weight."""
        made = self.low.b[start:stop] @ self.low.a
        return made.addcmul_(self.g[start:stop, None].to(made), weight.to(made))

    def dense(self, weight: Rows) -> Dense:
        """The delta, made when its rows are asked for."""
        shape = torch.Size((self.low.b.shape[0], self.low.a.shape[1]))
        size = block_rows(shape, self.low.a.device)
        return Dense(shape, size, lambda start, stop: self.rows(start, stop, weight(start, stop)))


@dataclass(frozen=True)
class OnBase:
    """What the deltas of a stack take from the base: D_t = c_t B_t A_t + diag(gains[t]) W; gains of plain adapters are 0.

    Shapes: gains (n, d_out) float64.
    """

    gains: Float[torch.Tensor, "n d_out"]
    weight: Rows


def fold_magnitudes(
    stack: FactorStack, scales: Sequence[float], magnitudes: Sequence[torch.Tensor | None], weight: Rows
) -> tuple[FactorStack, OnBase]:
    """The stack with B_t <- diag(sigma_t) B_t, and what its deltas take from the base besides.

    scales: s_t, which with a user's weight makes up coefficients[t]. magnitudes: None for plain adapters.

    Shapes: stack of one site; magnitudes (d_out,).
    """
    d_out = stack.d_out
    sigma = torch.ones(len(stack), d_out, dtype=torch.float64, device=stack.a[0].device)
    scaled = [(t, magnitude) for t, magnitude in enumerate(magnitudes) if magnitude is not None]
    for start, stop, rows in _tiles(weight, d_out, stack.d_in):
        tile = rows.to(sigma)
        for t, magnitude in scaled:
            adapted = torch.addmm(tile, stack.b[t][start:stop].to(sigma), stack.a[t].to(sigma), alpha=scales[t])
            norms = torch.linalg.vector_norm(adapted, dim=1)
            norms *= norms > CANCELLED * torch.linalg.vector_norm(tile, dim=1)
            sigma[t, start:stop] = ratio(magnitude[start:stop].to(sigma), norms)
    b = list(stack.b)
    gains = torch.zeros_like(sigma)
    for t, _ in scaled:
        b[t] = (sigma[t, :, None] * stack.b[t].double()).to(stack.dtype)
        gains[t] = stack.weights.each[t] * (sigma[t] - 1)
    return replace(stack, b=tuple(b)), OnBase(gains, weight)


def combine(stack: FactorStack, base: OnBase, coefficients: torch.Tensor) -> RowScaled:
    """sum_t c'_t D_t, exactly.

    Shapes: coefficients (n,), or (d_out, n) for one combination per output row.
    """
    c = torch.as_tensor(coefficients).to(base.gains)
    return RowScaled((c.reshape(-1, len(stack)) * base.gains.T).sum(-1), concat(stack, coefficients))


def gram(stack: FactorStack, base: OnBase) -> Float[torch.Tensor, "n n"]:
    """G_ij = <D_i, D_j>_F of the weighted deltas, float64."""
    total = torch.zeros(len(stack), len(stack)).to(base.gains)
    for x in _deltas(stack, base):
        flat = x.flatten(1)
        total += flat @ flat.T
    return total


def rowwise_gram(stack: FactorStack, base: OnBase) -> Float[torch.Tensor, "d_out n n"]:
    """Inner products of the deltas row by row: G[row, i, j] = D_i[row] . D_j[row], float64."""
    return torch.cat([torch.einsum("nrd,mrd->rnm", x, x) for x in _deltas(stack, base)])


def represent_full(stack: FactorStack, base: OnBase) -> Represented:
    """The deltas themselves, in blocks of rows, for element-wise methods."""
    low = represent("full", OPTIONS["full"](), stack)
    (thing,) = low.objects
    scaled = [t for t in range(len(stack)) if bool(base.gains[t].any())]

    def make(start: int, stop: int) -> torch.Tensor:
        x = thing.make(start, stop)
        weight = base.weight(start, stop).to(x)
        for t in scaled:
            x[t].addcmul_(base.gains[t, start:stop, None].to(x), weight)
        return x

    return replace(low, objects=(replace(thing, make=make),))


def as_factors(stack: FactorStack, base: OnBase, draws: KeyedDraws) -> tuple[FactorStack, tuple[float | None, ...]]:
    """A stack of plain factors in which every DoRA delta is approximated, and the share of energy that was kept of each.

    The factors are balanced, B = U sqrt(S), A = sqrt(S) V^T, of scale 1; the user's weight stays the coefficient. Plain
    adapters stay as they are (None).
    """
    a, b, coefficients = list(stack.a), list(stack.b), list(stack.coefficients)
    kept: list[float | None] = [None] * len(stack)
    for t, rank in enumerate(stack.ranks):
        if not bool(base.gains[t].any()):
            continue
        user = stack.weights.each[t]
        whole = RowScaled(base.gains[t] / user, LowRank(stack.folded_b(t) / user, stack.folded_a(t)))
        own = replace(draws, identities=(draws.identities[t],), part=f"{draws.part} dora")
        found = compress(whole.dense(base.weight), WIDEST * rank, own)
        squares = found.spectral.s.double().square()
        others = (found.energy.to(squares) - squares.sum()).clamp_min(0)
        wanted = energy_rank(torch.cat([squares, others[None]]).sqrt(), SHARE)
        size = min(max(rank, wanted), len(squares))
        low = found.spectral.cut(size)
        a[t], b[t], coefficients[t] = low.a, low.b, user
        kept[t] = float(ratio(squares[:size].sum(), found.energy.to(squares))) if float(found.energy) > 0 else 1.0
    return replace(stack, a=tuple(a), b=tuple(b), coefficients=tuple(coefficients)), tuple(kept)


def widest_rank(rank: int, d_out: int, d_in: int) -> int:
    """Upper bound of the rank of the factors that stand for a DoRA delta."""
    return min(WIDEST * rank, d_out, d_in)


def _deltas(stack: FactorStack, base: OnBase) -> Iterator[Float[torch.Tensor, "n rows d_in"]]:
    """All weighted deltas in tiles of rows, float64."""
    for start, stop, rows in _tiles(base.weight, stack.d_out, stack.d_in, len(stack)):
        x = base.gains[:, start:stop, None] * rows.to(base.gains)
        for t in range(len(stack)):
            c = torch.as_tensor(stack.coefficients[t]).to(x)
            x[t] += c * (stack.b[t][start:stop].to(x) @ stack.a[t].to(x))
        yield x


def _tiles(weight: Rows, d_out: int, d_in: int, count: int = 1) -> Iterator[tuple[int, int, torch.Tensor]]:
    size = max(1, TILE // (count * d_in))
    for start in range(0, d_out, size):
        stop = min(start + size, d_out)
        yield start, stop, weight(start, stop)

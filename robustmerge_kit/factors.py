"""Low-rank algebra at one site: the stack of factors, its Gram matrix, its exact small core, truncation.

Axis glossary, always in this order and by these names:
    n     adapters in the stack
    r     rank of one adapter; R is the sum of the ranks
    d_in, d_out   width of the site's input and output
    q_b, q_a      min(d_out, R) and min(d_in, R): the sides of a core matrix
Any number of leading batch axes may stand before them.

Everything below is computed in float64 from the factors as they are stored, so that directions which adapters share stay
shared to 1e-16; only the long bases are rounded to compute dtype. `eps` remembers how precise the inputs were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int

from .orthonormal import Basis, orthonormal

EPS = 2.0**-23
"""Relative spacing of float32, in which everything is computed but input that is float64."""


@dataclass(frozen=True)
class Weights:
    """User weights at one site. `each` belongs to the adapters handed to a method, in order; none of them is 0.

    `total` and `count` include the adapters whose delta is zero: means that are declared over all adapters divide by these.
    `places` are the positions of the adapters handed over among all that count, for methods that tell first from second.
    """

    each: tuple[float, ...]
    total: float
    count: int
    places: tuple[int, ...]

    @classmethod
    def of(cls, each: Sequence[float], absent: Sequence[float] = (), places: Sequence[int] | None = None) -> Weights:
        """Weights of adapters in the stack, and of those that count but have a zero delta; by default the stack is first."""
        known = range(len(each)) if places is None else places
        return cls(tuple(each), float(sum(each) + sum(absent)), len(each) + len(absent), tuple(known))


@dataclass(frozen=True)
class FactorStack:
    """The adapters at one site, as stored: nothing is folded or cast yet.

    Adapter t contributes D_t = coefficients[t] * B_t A_t, where coefficients[t] = weight * scale. A coefficient is a number,
    or a tensor over the batch axes once a transform has made it differ between the sites of a batch.

    Shapes: a[t] (..., r_t, d_in), b[t] (..., d_out, r_t) in any floating dtype.
    """

    a: tuple[Float[torch.Tensor, "*batch _ d_in"], ...]
    b: tuple[Float[torch.Tensor, "*batch d_out _"], ...]
    coefficients: tuple[float | torch.Tensor, ...]
    weights: Weights

    def __len__(self) -> int:
        return len(self.a)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(a.shape[-2] for a in self.a)

    @property
    def d_in(self) -> int:
        return self.a[0].shape[-1]

    @property
    def d_out(self) -> int:
        return self.b[0].shape[-2]

    @property
    def batch(self) -> torch.Size:
        return self.a[0].shape[:-2]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of arithmetic on the factors: float64 when all of them are, else float32."""
        return torch.float64 if all(x.dtype == torch.float64 for x in (*self.a, *self.b)) else torch.float32

    def folded_a(self, t: int) -> Float[torch.Tensor, "*batch r d_in"]:
        """A_t in compute dtype."""
        return self.a[t].to(self.dtype)

    def folded_b(self, t: int) -> Float[torch.Tensor, "*batch d_out r"]:
        """c_t B_t in compute dtype."""
        c = self.coefficients[t]
        return self.b[t].to(self.dtype) * (c.to(self.dtype)[..., None, None] if isinstance(c, torch.Tensor) else c)


@dataclass(frozen=True)
class LowRank:
    """A merged delta B A of scale 1.

    Shapes: b (..., d_out, k), a (..., k, d_in).
    """

    b: Float[torch.Tensor, "*batch d_out k"]
    a: Float[torch.Tensor, "*batch k d_in"]

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


@dataclass(frozen=True)
class Core:
    """All deltas of one site in a common pair of orthonormal bases: D_t = q_b @ cores[t] @ q_a.T, without loss.

    [c_1 B_1 | .. | c_n B_n] = q_b r_b and [A_1; ..; A_n]^T = q_a r_a, so cores[t] = r_b[:, t] r_a[:, t]^T, where the columns
    [:, t] are the `ranks[t]` columns of adapter t. `eps` is the relative spacing of the inputs, see `nrank`.

    Shapes: q_b (..., d_out, q_b), q_a (..., d_in, q_a) in compute dtype; r_b (..., q_b, R), r_a (..., q_a, R) float64.
    """

    q_b: Basis
    q_a: Basis
    r_b: Float[torch.Tensor, "*batch q_b R"]
    r_a: Float[torch.Tensor, "*batch q_a R"]
    ranks: tuple[int, ...]
    eps: float

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the site."""
        return self.q_b.shape[-2], self.q_a.shape[-2]

    @cached_property
    def pairs(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """The columns of r_b and r_a that belong to each adapter."""
        return tuple(zip(self.r_b.split(self.ranks, -1), self.r_a.split(self.ranks, -1), strict=True))

    @cached_property
    def cores(self) -> Float[torch.Tensor, "*batch n q_b q_a"]:
        """M_t, one per adapter, in the order of the stack."""
        return torch.stack([b @ a.mT for b, a in self.pairs], -3)

    def seen_from(
        self, u: Float[torch.Tensor, "*batch q_b k"], v: Float[torch.Tensor, "*batch q_a j"]
    ) -> Float[torch.Tensor, "*batch n k j"]:
        """U^T M_t V, one per adapter, through the factors of M_t: they are thinner."""
        left, right = u.mT @ self.r_b, v.mT @ self.r_a
        pairs = zip(left.split(self.ranks, -1), right.split(self.ranks, -1), strict=True)
        return torch.stack([b @ a.mT for b, a in pairs], -3)

    @cached_property
    def sum(self) -> Float[torch.Tensor, "*batch q_b q_a"]:
        """The sum of all M_t."""
        return self.r_b @ self.r_a.mT

    @cached_property
    def norms(self) -> Float[torch.Tensor, "*batch n"]:
        """||D_t||_F."""
        return torch.linalg.matrix_norm(self.cores)

    @cached_property
    def svds(self) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...]:
        """(U_t, S_t, V_t) of every M_t, min(r_t, q_b, q_a) columns; those beyond the numerical rank are exactly zero."""
        return tuple(_product_svd(b, a, self.eps) for b, a in self.pairs)

    def combine(self, coefficients: Float[torch.Tensor, "*batch n"]) -> InCore:
        """The delta sum_t coefficients[t] D_t."""
        each = [coefficients[..., t, None].expand(*coefficients.shape[:-1], r) for t, r in enumerate(self.ranks)]
        return InCore(self, (self.r_b * torch.cat(each, -1)[..., None, :].to(self.r_b)) @ self.r_a.mT)

    def sites(self) -> Iterator[Core]:
        """The cores of a batch one by one, for steps whose sizes depend on the data."""
        r_b, r_a = (x.reshape(-1, *x.shape[-2:]) for x in (self.r_b, self.r_a))
        for q_b, q_a, left, right in zip(self.q_b.each(), self.q_a.each(), r_b, r_a, strict=True):
            yield Core(q_b, q_a, left, right, self.ranks, self.eps)


@dataclass(frozen=True)
class InCore:
    """A merged delta q_b @ matrix @ q_a.T in the bases of a `Core`."""

    core: Core
    matrix: Float[torch.Tensor, "*batch q_b q_a"]


@dataclass(frozen=True)
class Spectral:
    """Singular value decomposition of a merged delta, not yet multiplied out: (q_b u) diag(s) (q_a v)^T.

    Values beyond the numerical rank are exactly zero.

    Shapes: q_b (..., d_out, q_b), u (..., q_b, k), s (..., k) descending, v (..., q_a, k), q_a (..., d_in, q_a).
    """

    q_b: Basis
    u: Float[torch.Tensor, "*batch q_b k"]
    s: Float[torch.Tensor, "*batch k"]
    v: Float[torch.Tensor, "*batch q_a k"]
    q_a: Basis

    @property
    def rank(self) -> int:
        """Numerical rank, the largest of a batch."""
        return int((self.s > 0).sum(-1).max()) if self.s.numel() else 0

    def with_values(self, s: Float[torch.Tensor, "*batch k"]) -> Spectral:
        """The same directions with other singular values, put into descending order again."""
        s, order = torch.sort(s, dim=-1, descending=True, stable=True)
        u, v = (torch.take_along_dim(x, order[..., None, :], -1) for x in (self.u, self.v))
        return replace(self, u=u, s=s, v=v)

    def cut(self, k: int) -> LowRank:
        """The best approximation of rank k, balanced: B = U sqrt(S), A = sqrt(S) V^T, padded with zeros where there is less.

        The largest entry by magnitude of every column of B is positive, the first one on a tie.

        Shapes: b (..., d_out, k), a (..., k, d_in), dtype of the bases.
        """
        root = self.s[..., None, :k].sqrt()
        b = self.q_b @ (self.u[..., :k] * root)
        if b.shape[-1]:
            sign = _signs(b)
            b *= sign
            root = root * sign
        a = (self.q_a @ (self.v[..., :k] * root)).mT
        return pad(LowRank(b, a), k)


def gram(stack: FactorStack) -> Float[torch.Tensor, "*batch n n"]:
    """G_ij = <D_i, D_j>_F of the weighted deltas, from products of factors only.

    G_ij = c_i c_j times the sum over entries of (A_i A_j^T) * (B_i^T B_j), float64.
    """
    a, b = joined(stack)
    return _scaled(_blocks((a @ a.mT) * (b.mT @ b), stack.ranks), stack)


def rowwise_gram(stack: FactorStack) -> Float[torch.Tensor, "*batch d_out n n"]:
    """Inner products of the deltas row by row: G[row, i, j] = D_i[row] . D_j[row], float64."""
    a, b = joined(stack)
    rows = [
        torch.stack([x.sum(-1) for x in (part @ inner * b).split(stack.ranks, -1)], -1)
        for part, inner in zip(b.split(stack.ranks, -1), (a @ a.mT).split(stack.ranks, -2), strict=True)
    ]
    return _scaled(torch.stack(rows, -2), stack)


def norms(stack: FactorStack) -> Float[torch.Tensor, "*batch n"]:
    """||D_t||_F of the weighted deltas, float64."""
    each = [norm(LowRank(b, a)) for b, a in zip(stack.b, stack.a, strict=True)]
    return torch.stack(each, -1) * _coefficients(stack).abs()


def concat(stack: FactorStack, coefficients: torch.Tensor | Sequence[float]) -> LowRank:
    """sum_t c'_t D_t as factors [c'_1 B_1 | .. | c'_n B_n] and [A_1; ..; A_n], rank R; B_t folded.

    Shapes: coefficients (..., n), or (..., d_out, n) for one combination per output row.
    """
    c = torch.as_tensor(coefficients, dtype=torch.float64, device=stack.b[0].device)
    c = c if c.ndim == stack.b[0].ndim else c[..., None, :]
    b = [(stack.folded_b(t) * c[..., t, None].to(stack.dtype)) for t in range(len(stack))]
    return LowRank(torch.cat(b, -1), torch.cat([stack.folded_a(t) for t in range(len(stack))], -2))


def core(stack: FactorStack) -> Core:
    """The exact small core of a stack: thin QR of the joined B and of the joined A, any ranks, R > d included."""
    return weighted(unweighted_core(stack), stack)


def unweighted_core(stack: FactorStack) -> Core:
    """The core of a stack whose coefficients were all 1."""
    exact = stack.dtype == torch.float64
    a, b = joined(stack)
    q_b, r_b = orthonormal(b, exact, stack.dtype)
    q_a, r_a = orthonormal(a.mT, exact, stack.dtype)
    return Core(q_b, q_a, r_b, r_a, stack.ranks, torch.finfo(stack.dtype).eps)


def weighted(unweighted: Core, stack: FactorStack) -> Core:
    """The core of a stack from its `unweighted_core`.

    Folding coefficients after the QR keeps adapters that share a factor on exactly the same directions, whatever their weights.
    """
    c = torch.repeat_interleave(_coefficients(stack), torch.tensor(stack.ranks, device=unweighted.r_b.device), -1)
    return replace(unweighted, r_b=unweighted.r_b * c[..., None, :])


def nrank(s: Float[torch.Tensor, "*batch k"], shape: Sequence[int], eps: float) -> Int[torch.Tensor, "*batch"]:
    """Numerical rank: how many singular values exceed max(shape) * eps * the largest; 0 for the zero matrix."""
    return (s > max(shape) * eps * s[..., :1]).sum(-1)


def ratio(over: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """Quotient over / under entry by entry; 0 where `under` is 0."""
    return torch.where(under != 0, over / torch.where(under != 0, under, 1.0), 0.0)


def svd(
    x: Float[torch.Tensor, "*batch m p"], eps: float, noise: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(U, S, V) with x = U diag(S) V^T, min(m, p) columns; everything beyond the numerical rank is exactly zero.

    Values up to `noise` (...,) are zero as well: what is left of terms that cancel is rounding, not a direction.
    """
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    u, s, v = _masked(u, s, vh.mT, x.shape[-2:], eps)
    if noise is None:
        return u, s, v
    loud = s > noise[..., None]
    return u * loud[..., None, :], s * loud, v * loud[..., None, :]


def polar(x: Float[torch.Tensor, "*batch m p"], eps: float) -> Float[torch.Tensor, "*batch m p"]:
    """U V^T over the numerical rank of x = U S V^T: the nearest partial isometry; zero for the zero matrix."""
    u, _, v = svd(x, eps)
    return u @ v.mT


def decompose(delta: LowRank | InCore) -> Spectral:
    """Singular values and vectors of a merged delta by way of its small core; a zero delta has all values 0."""
    if isinstance(delta, InCore):
        core = delta.core
        u, s, v = svd(delta.matrix, core.eps, _rounding(core.r_b, core.r_a))
        return Spectral(core.q_b, u, s, v, core.q_a)
    exact = delta.b.dtype == torch.float64
    dtype = torch.float64 if exact else torch.float32
    q_b, r_b = orthonormal(delta.b, exact, dtype)
    q_a, r_a = orthonormal(delta.a.mT, exact, dtype)
    u, s, v = svd(r_b @ r_a.mT, torch.finfo(dtype).eps, _rounding(r_b, r_a))
    return Spectral(q_b, u, s, v, q_a)


def pad(delta: LowRank, k: int) -> LowRank:
    """The same delta with rank k or its own, whichever is larger: zero columns of B and zero rows of A are added."""
    missing = k - delta.rank
    if missing <= 0:
        return delta
    b = torch.nn.functional.pad(delta.b, (0, missing))
    return LowRank(b, torch.nn.functional.pad(delta.a, (0, 0, 0, missing)))


def norm(delta: LowRank | InCore | Spectral) -> Float[torch.Tensor, "*batch"]:
    """||D||_F, float64."""
    if isinstance(delta, Spectral):
        return torch.linalg.vector_norm(delta.s, dim=-1)
    if isinstance(delta, InCore):
        return torch.linalg.matrix_norm(delta.matrix)
    a, b = delta.a.double(), delta.b.double()
    return ((a @ a.mT) * (b.mT @ b)).sum((-2, -1)).clamp_min(0).sqrt()


def _signs(b: Float[torch.Tensor, "*batch d k"]) -> Float[torch.Tensor, "*batch 1 k"]:
    """The sign of the largest entry by magnitude of every column, of the first one on a tie; + for a zero column."""
    high, low = b.amax(-2, keepdim=True), -b.amin(-2, keepdim=True)
    negative = low > high
    tied = (low == high) & (high > 0)
    if bool(tied.any()):
        negative |= tied & (torch.take_along_dim(b, b.abs().argmax(-2, keepdim=True), -2) < 0)
    return torch.where(negative, -1.0, 1.0).to(b)


def _rounding(b: Float[torch.Tensor, "*batch m k"], a: Float[torch.Tensor, "*batch p k"]) -> Float[torch.Tensor, "*batch"]:
    """How large float64 rounding may be in b a^T: its terms b_j a_j^T may cancel, their rounding does not."""
    terms = torch.linalg.vector_norm(b, dim=-2) * torch.linalg.vector_norm(a, dim=-2)
    return max(b.shape[-2], a.shape[-2]) * torch.finfo(torch.float64).eps * torch.linalg.vector_norm(terms, dim=-1)


def _masked(
    u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, shape: Sequence[int], eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    keep = torch.arange(s.shape[-1], device=s.device) < nrank(s, shape, eps)[..., None]
    return u * keep[..., None, :], s * keep, v * keep[..., None, :]


def _product_svd(b: torch.Tensor, a: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """SVD of b a^T by way of the r x r product of triangular factors; the rank is judged at the size of b a^T."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    return _masked(q_b @ u, s, q_a @ vh.mT, (b.shape[-2], a.shape[-2]), eps)


def joined(stack: FactorStack) -> tuple[Float[torch.Tensor, "*batch R d_in"], Float[torch.Tensor, "*batch d_out R"]]:
    """[A_1; ..; A_n] and [B_1 | .. | B_n] in float64, coefficients not folded in."""
    return _joined(stack.a, -2), _joined(stack.b, -1)


def _joined(parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Parts side by side in float64, each converted where it is put."""
    sizes = [part.shape[axis] for part in parts]
    shape = list(parts[0].shape)
    shape[axis] = sum(sizes)
    whole = parts[0].new_empty(shape, dtype=torch.float64)
    for place, part in zip(whole.split(sizes, axis), parts, strict=True):
        place.copy_(part)
    return whole


def _coefficients(stack: FactorStack) -> Float[torch.Tensor, "*batch n"]:
    each = [torch.as_tensor(c, dtype=torch.float64, device=stack.a[0].device) for c in stack.coefficients]
    return torch.stack([c.expand(stack.batch) for c in each], -1)


def _blocks(x: Float[torch.Tensor, "*batch R R"], ranks: Sequence[int]) -> Float[torch.Tensor, "*batch n n"]:
    """The sum over each block of adapter i against adapter j."""
    rows = torch.stack([part.sum(-2) for part in x.split(ranks, -2)], -2)
    return torch.stack([part.sum(-1) for part in rows.split(ranks, -1)], -1)


def _scaled(x: Float[torch.Tensor, "*batch n n"], stack: FactorStack) -> Float[torch.Tensor, "*batch n n"]:
    c = _coefficients(stack)
    outer = c[..., :, None] * c[..., None, :]
    return x * (outer if x.ndim == outer.ndim else outer[..., None, :, :])

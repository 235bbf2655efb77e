"""Orthonormal bases of tall matrices: by the Cholesky factor where that is safe, and multiplied out only where needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float

CONDITION_LIMIT = 3e4
"""Largest condition number of normalised columns at which a Cholesky factor stands in for Householder QR.

Its square times 2^-53 bounds how far the basis is from orthonormal: 1e-7, the rounding of the basis itself.
"""


MILD = 4.0
"""Times the least condition number, in Frobenius norms, up to which products with a basis are taken in its own dtype.

They then lose what rounding a product to that dtype loses, a few times; beyond it they are taken in float64.
"""


@dataclass(frozen=True, eq=False)
class Basis:
    """Q (..., d, k) with orthonormal columns, in `dtype`: the columns themselves, or vectors they span times a small matrix.

    A product with no more columns than Q is taken through the small matrix first, which spares the product that makes Q.

    The vectors are in `dtype` where that does no harm, else in float64.

    Shapes: vectors (..., d, m), mix (..., m, k) float64 or None for the identity.
    """

    vectors: Float[torch.Tensor, "*batch d m"]
    mix: Float[torch.Tensor, "*batch m k"] | None
    dtype: torch.dtype

    @classmethod
    def of(cls, columns: Float[torch.Tensor, "*batch d k"]) -> Basis:
        """Columns that are orthonormal already, in their own dtype."""
        return cls(columns, None, columns.dtype)

    @property
    def shape(self) -> torch.Size:
        return self.vectors.shape if self.mix is None else torch.Size((*self.vectors.shape[:-1], self.mix.shape[-1]))

    @property
    def nbytes(self) -> int:
        """Bytes in memory: what is kept of it, and Q once it has been made."""
        kept = [self.vectors, *([] if self.mix is None else [self.mix]), *([self.full] if "full" in self.__dict__ else [])]
        return sum(tensor.nbytes for tensor in kept)

    @property
    def device(self) -> torch.device:
        return self.vectors.device

    @cached_property
    def full(self) -> Float[torch.Tensor, "*batch d k"]:
        """Q in `dtype`."""
        return self._whole.to(self.dtype)

    @property
    def mT(self) -> Float[torch.Tensor, "*batch k d"]:  # noqa: N802
        """Q^T in `dtype`, named as torch names it."""
        return self.full.mT

    def double(self) -> Float[torch.Tensor, "*batch d k"]:
        """Q as it is used, in float64."""
        return self.full.double()

    def __matmul__(self, x: Float[torch.Tensor, "*batch k j"]) -> Float[torch.Tensor, "*batch d j"]:
        """Q x in `dtype`."""
        if self.mix is None or x.shape[-1] > self.mix.shape[-1]:
            return self.full @ x.to(self.dtype)
        # Few rows times a wide matrix is several times as fast as a tall matrix times few columns.
        return ((self.mix @ x.to(self.mix)).mT.to(self.vectors).contiguous() @ self.vectors.mT).mT.to(self.dtype)

    def each(self) -> Iterator[Basis]:
        """The bases of a batch one by one."""
        vectors = self.vectors.reshape(-1, *self.vectors.shape[-2:])
        mixes = [None] * len(vectors) if self.mix is None else self.mix.reshape(-1, *self.mix.shape[-2:])
        for one, mix in zip(vectors, mixes, strict=True):
            yield Basis(one, mix, self.dtype)

    def without_vectors(self) -> Basis:
        """What is left of it when it is mixed of vectors that are at hand elsewhere, for `on`."""
        return self if self.mix is None else Basis(self.vectors[..., :0, :].clone(), self.mix, self.dtype)

    def on(self, vectors: Float[torch.Tensor, "*batch d m"]) -> Basis:
        """The basis that `without_vectors` was made of, whose vectors these are."""
        return self if self.mix is None else Basis(vectors.to(self.vectors.dtype), self.mix, self.dtype)

    @property
    def _whole(self) -> torch.Tensor:
        # This way round the product is stored as torch's own QR stores its Q: row by row for Q^T.
        return self.vectors if self.mix is None else (self.mix.mT.to(self.vectors) @ self.vectors.mT).mT


def orthonormal(
    x: Float[torch.Tensor, "*batch d k"], exact: bool = True, dtype: torch.dtype | None = None
) -> tuple[Basis, torch.Tensor]:
    """Q, R with x = Q R and Q^T Q = 1, computed in float64; R is min(d, k) x k, Q d x min(d, k) in `dtype` (None: float64).

    `exact` demands Householder QR. Otherwise the Cholesky factor of the Gram matrix of the normalised columns serves where
    they are well conditioned, which is the common case and several times faster.
    """
    x = x.double()
    dtype = dtype or x.dtype
    if exact or x.shape[-1] >= x.shape[-2]:
        return _householder(x, dtype)
    small = x.mT @ x
    scale = small.diagonal(dim1=-2, dim2=-1).sqrt()
    lower, failed = torch.linalg.cholesky_ex(small / (scale[..., :, None] * scale[..., None, :]))
    inverse = torch.linalg.solve_triangular(lower.mT, torch.eye(x.shape[-1]).to(x).expand_as(lower), upper=True)
    condition = torch.linalg.matrix_norm(lower) * torch.linalg.matrix_norm(inverse)
    safe = (failed == 0) & (condition < CONDITION_LIMIT)
    if not bool(safe.any()):
        return _householder(x, dtype)
    mild = bool((condition < MILD * x.shape[-1]).all())
    quick = Basis(x.to(dtype) if mild else x, inverse / scale[..., :, None], dtype)
    r = lower.mT * scale[..., None, :]
    if bool(safe.all()):
        return quick, r
    q = quick.full.clone()
    slow, r[~safe] = _householder(x[~safe], dtype)
    q[~safe] = slow.full
    return Basis.of(q), r


def _householder(x: torch.Tensor, dtype: torch.dtype) -> tuple[Basis, torch.Tensor]:
    q, r = torch.linalg.qr(x)
    return Basis.of(q.to(dtype)), r

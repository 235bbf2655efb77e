"""Low-rank algebra at one site: the stack of factors, its Gram matrix, its exact small core, truncation.

Axis glossary, always in this order and by these names:
    n     adapters in the stack
    r     rank of one adapter; R is the sum of the ranks
    d_in, d_out   width of the site's input and output
    q_b, q_a      min(d_out, R) and min(d_in, R): the sides of a core matrix
Any number of leading batch axes may stand before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

COMPUTE = torch.float32
"""Dtype of arithmetic on matrices of the size of a factor; small square matrices are float64."""


@dataclass(frozen=True)
class Weights:
    """User weights at one site. `each` belongs to the adapters handed to a method, in order; none of them is 0.

    `total` and `count` include the adapters whose delta is zero: means that are declared over all adapters divide by these.
    """

    each: tuple[float, ...]
    total: float
    count: int

    @classmethod
    def of(cls, each: Sequence[float], absent: Sequence[float] = ()) -> Weights:
        """Weights of the adapters in the stack, and of those that count but have a zero delta."""
        return cls(tuple(each), float(sum(each) + sum(absent)), len(each) + len(absent))


@dataclass(frozen=True)
class FactorStack:
    """The adapters at one site, as stored: nothing is folded or cast yet.

    Adapter t contributes D_t = coefficients[t] * B_t A_t, where coefficients[t] = weight * scale.

    Shapes: a[t] (..., r_t, d_in), b[t] (..., d_out, r_t) in any floating dtype.
    """

    a: tuple[Float[Tensor, "*batch _ d_in"], ...]
    b: tuple[Float[Tensor, "*batch d_out _"], ...]
    coefficients: tuple[float, ...]
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

    def folded_a(self, t: int) -> Float[Tensor, "*batch r d_in"]:
        """A_t in compute dtype."""
        return _compute(self.a[t])

    def folded_b(self, t: int) -> Float[Tensor, "*batch d_out r"]:
        """c_t B_t in compute dtype."""
        return _compute(self.b[t]) * self.coefficients[t]


def _compute(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(COMPUTE)


@dataclass(frozen=True)
class LowRank:
    """A merged delta B A of scale 1.

    Shapes: b (..., d_out, k), a (..., k, d_in).
    """

    b: Float[Tensor, "*batch d_out k"]
    a: Float[Tensor, "*batch k d_in"]

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


@dataclass(frozen=True)
class Core:
    """All deltas of one site in a common pair of orthonormal bases: D_t = q_b @ cores[t] @ q_a.T, without loss.

    Shapes: q_b (..., d_out, q_b), q_a (..., d_in, q_a), cores (..., n, q_b, q_a) float64.
    """

    q_b: Float[Tensor, "*batch d_out q_b"]
    q_a: Float[Tensor, "*batch d_in q_a"]
    cores: Float[Tensor, "*batch n q_b q_a"]


@dataclass(frozen=True)
class InCore:
    """A merged delta q_b @ matrix @ q_a.T in the bases of a `Core`."""

    core: Core
    matrix: Float[Tensor, "*batch q_b q_a"]


@dataclass(frozen=True)
class Spectral:
    """Singular value decomposition of a merged delta, not yet multiplied out: (q_b u) diag(s) (q_a v)^T.

    Shapes: q_b (..., d_out, q_b), u (..., q_b, k), s (..., k) descending, v (..., q_a, k), q_a (..., d_in, q_a).
    """

    q_b: Float[Tensor, "*batch d_out q_b"]
    u: Float[Tensor, "*batch q_b k"]
    s: Float[Tensor, "*batch k"]
    v: Float[Tensor, "*batch q_a k"]
    q_a: Float[Tensor, "*batch d_in q_a"]

"""The contract of a merge method: a record of one of four kinds, and the kind fixes what `merge` is given.

`merge` is pure: no I/O, no logging, no global state, inputs not mutated, dtype and device of the inputs kept. Leading batch
axes (`...`) are allowed everywhere, so that sites of one shape run as one launch on a GPU.

The adapters handed to `merge` all have a delta at the site that is not zero. Adapters whose delta is zero, or that miss the
site under `missing: zero`, are not handed over; `Weights` counts them for methods that declare a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from .factors import FactorStack, LowRank, Weights


class Params(BaseModel):
    """Base of a method's settings: closed, immutable; ranges stand in the fields.

    Fields named in `per_adapter` may be given by adapter entries too; there they hold one value for all adapters or a tuple
    with one value per adapter, see `each`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    per_adapter: ClassVar[tuple[str, ...]] = ()

    def each(self, name: str, n: int) -> tuple[Any, ...]:
        """The field `name` as n values, one per adapter."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * n


class Draws(Protocol):
    """Random numbers keyed by (seed, site, adapter, purpose): independent of order, threads, tiles and device."""

    def uniform(self, adapter: int, purpose: str, like: Tensor) -> Tensor:
        """Uniforms in [0, 1), float32, of the shape of `like`, for the adapter at that position of the stack."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """What every method says of itself. `paper` is an arXiv id or an author's name and year.

    rank: (ranks of the adapters at a site, params) -> rank of the result, an upper bound.
    check: (params, weights of the adapters) -> a sentence why they cannot be merged, or None; asked at plan time.
    adapters: least and largest number of inputs.
    """

    name: str
    paper: str
    params: type[Params]
    rank: Callable[[Sequence[int], Any], int] = lambda ranks, params: sum(ranks)
    check: Callable[[Any, Sequence[float]], str | None] = lambda params, weights: None
    adapters: tuple[int, int | None] = (1, None)
    equal_ranks: bool = False
    split_dependent: bool = False
    kind: ClassVar[Literal["coefficient", "equivariant", "elementwise", "factor"]]


@dataclass(frozen=True, kw_only=True)
class Coefficient(Method):
    """The merged delta is a combination of the deltas whose coefficients depend on their inner products only.

    merge(gram (..., n, n), weights, params) -> coefficients (..., n) of the weighted deltas D_t.
    needs_gram: False when the coefficients depend on the weights alone; `gram` is then all zeros.
    rowwise: params -> True when merge is to be called per output row, with gram (d_out, n, n).
    """

    merge: Callable[[Float[Tensor, "*batch n n"], Weights, Any], Float[Tensor, "*batch n"]]
    needs_gram: bool = True
    rowwise: Callable[[Any], bool] = lambda params: False
    kind = "coefficient"


@dataclass(frozen=True, kw_only=True)
class Equivariant(Method):
    """f(P M_1 Q, ..) = P f(M_1, ..) Q for orthogonal P, Q: the method runs on the small core matrices without loss.

    merge(cores (..., n, q_b, q_a) float64, weights, params) -> merged core (..., q_b, q_a).
    """

    merge: Callable[[Float[Tensor, "*batch n q_b q_a"], Weights, Any], Float[Tensor, "*batch q_b q_a"]]
    kind = "equivariant"


@dataclass(frozen=True, kw_only=True)
class Factor(Method):
    """The method works on the A stack and the B stack.

    merge(stack, params, draws) -> LowRank of scale 1.
    keeps_zero: the stack also holds adapters whose delta is zero (parity with PEFT).
    """

    merge: Callable[[FactorStack, Any, Draws], LowRank]
    split_dependent: bool = True
    keeps_zero: bool = False
    kind = "factor"


def dtype_eps(dtype: torch.dtype) -> float:
    """Relative spacing of a dtype, 2^-23 for anything that passed through float32."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps

"""The contract of a merge method: a record of one of four kinds, and the kind fixes what `merge` is given.

`merge` is pure: no I/O, no logging, no global state, inputs not mutated, dtype and device of the inputs kept. Leading batch
axes (`...`) are allowed everywhere, so that sites of one shape run as one launch on a GPU.

The adapters handed to `merge` all have a delta at the site that is not zero. Adapters whose delta is zero, or that miss the
site under `missing: zero`, are not handed over; `Weights` counts them for methods that declare a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from .factors import Core, FactorStack, LowRank, Weights


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

    def among(self, members: Sequence[int]) -> Self:
        """The settings of some of the adapters, by their positions in the tuples of values per adapter."""
        each = {name: getattr(self, name) for name in self.per_adapter}
        return self.model_copy(update={k: tuple(v[i] for i in members) for k, v in each.items() if isinstance(v, tuple)})


@runtime_checkable
class Draws(Protocol):
    """Random numbers keyed by (seed, site, adapter, purpose): independent of order, threads, tiles and device.

    Draws also know where the tensors at hand lie in their object, since an object may be handed over in blocks of rows.
    """

    def uniform(self, adapter: int | None, purpose: str, like: torch.Tensor) -> torch.Tensor:
        """Uniforms in [0, 1), float32, of the shape of `like`, for the adapter at that position of the stack.

        adapter None: one key for the whole stack, the same for any order of its adapters.
        """
        ...

    def first_entry(self, cols: int) -> int:
        """Flat index, counted as the survey counted, of the first entry of a block with that many columns."""
        ...

    def own(self, stats: Stats) -> Stats:
        """Of numbers per adapter of a whole survey, those of the adapters at hand: some may lack the site."""
        ...


Of = Callable[["torch.Tensor", Draws], "torch.Tensor"]
"""What a survey looks at: a block x (..., n, rows, cols) and its draws -> values (..., m, rows, cols), m = n or 1."""

Stats = Mapping[str, "torch.Tensor"]
"""What a survey found out, by name; each (..., n), or (..., 1) where it is one number for all adapters."""


class Order(NamedTuple):
    """The entry at one position of the ascending order: its value, and how many entries are smaller and equal.

    Shapes: each (..., m); counts int64.
    """

    value: torch.Tensor
    below: torch.Tensor
    equal: torch.Tensor


@runtime_checkable
class Whole(Protocol):
    """All entries of every adapter at a site, or at all sites with `scope: global`: exact numbers over blocks of rows."""

    @property
    def numel(self) -> tuple[int, ...]:
        """Number of entries of each adapter."""
        ...

    def order(self, of: Of, *positions: Sequence[int] | torch.Tensor, signed: bool = False) -> tuple[Order, ...]:
        """Exact order statistics of `of`, one per element of `positions`: 0-based, in ascending order, per lane.

        signed: values may be negative; without it they must not be.

        Shapes: positions broadcast to (..., m).
        """
        ...

    def locate(self, of: Of, value: torch.Tensor, nth: torch.Tensor) -> torch.Tensor:
        """Flat index of the entry that is the nth (0-based) among those where `of` equals value; -1 where nth is negative.

        Shapes: value, nth (..., m) -> (..., m) int64.
        """
        ...

    def total(self, of: Of) -> torch.Tensor:
        """Sum of `of` over all entries, (..., m) float64."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """What every method says of itself. `paper` is an arXiv id or an author's name and year.

    rank: (ranks of the adapters at a site, params) -> rank of the result, an upper bound.
    check: (params, weights of the adapters) -> a sentence why they cannot be merged, or None; asked at plan time.
    adapters: least and largest number of inputs.
    equal_ranks: all adapters must have one rank. split_dependent: the result depends on how B A is split into factors.
    output_rank: `sum` admits only the full rank, `required` wants an explicit `output.rank`.
    random: params -> True when merge draws random numbers. spaces: where the method may run, empty where that is no question.
    flat_spectrum: the singular values of the result are all alike, so cutting its rank keeps arbitrary directions.
    """

    name: str
    paper: str
    params: type[Params]
    rank: Callable[[Sequence[int], Any], int] = lambda ranks, params: sum(ranks)
    check: Callable[[Any, Sequence[float]], str | None] = lambda params, weights: None
    adapters: tuple[int, int | None] = (1, None)
    equal_ranks: bool = False
    split_dependent: bool = False
    output_rank: Literal["any", "sum", "required"] = "any"
    flat_spectrum: bool = False
    random: Callable[[Any], bool] = lambda params: False
    spaces: tuple[str, ...] = ()
    kind: ClassVar[Literal["coefficient", "equivariant", "elementwise", "factor"]]


@dataclass(frozen=True, kw_only=True)
class Coefficient(Method):
    """The merged delta is a combination of the deltas whose coefficients depend on their inner products only.

    merge(gram (..., n, n), weights, params) -> coefficients (..., n) of the weighted deltas D_t.
    needs_gram: False when the coefficients depend on the weights alone; `gram` is then all zeros.
    rowwise: params -> True when merge is to be called per output row, with gram (d_out, n, n).
    """

    merge: Callable[[Float[torch.Tensor, "*batch n n"], Weights, Any], Float[torch.Tensor, "*batch n"]]
    needs_gram: bool = True
    rowwise: Callable[[Any], bool] = lambda params: False
    kind = "coefficient"


@dataclass(frozen=True, kw_only=True)
class Equivariant(Method):
    """f(P M_1 Q, ..) = P f(M_1, ..) Q for orthogonal P, Q: the method runs on the small core matrices without loss.

    merge(core, weights, params) -> merged matrix (..., q_b, q_a) float64 in the bases of the core. Besides the matrices M_t
    the core knows their factors, the size of the site and `eps`, the precision at which ranks are judged.
    """

    merge: Callable[[Core, Weights, Any], Float[torch.Tensor, "*batch q_b q_a"]]
    kind = "equivariant"


def no_survey(whole: Whole, params: Any) -> Stats:
    """The survey of a method that looks at each entry by itself."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Elementwise(Method):
    """The method looks at the entries one by one, in the space that the recipe names.

    merge(x (..., n, rows, cols), weights, params, draws, stats) -> merged (..., rows, cols). x holds the weighted deltas, or
    what stands for them in the space; rows may be any block of the rows of the object.
    survey(whole, params) -> stats: what merge must know of all entries before it can treat a block.
    A method whose params have a field `scope` can be surveyed over all sites together.
    whole: merge must be given all rows at once.
    """

    merge: Callable[
        [Float[torch.Tensor, "*batch n rows cols"], Weights, Any, Draws, Stats], Float[torch.Tensor, "*batch rows cols"]
    ]
    survey: Callable[[Whole, Any], Stats] = no_survey
    whole: bool = False
    spaces: tuple[str, ...] = ("full", "core", "knots", "ctm", "factor")
    kind = "elementwise"


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

"""What a merge consists of: one step per site, one per other tensor, and the tensors that come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from ..adapters import Adapter, Columns, SiteFactors, pack
from ..checkpoint import Checkpoint
from ..method import Method, Params
from ..recipe import Recipe
from ..shards import TensorRef, TensorSpec
from ..transforms import Post, Pre
from .places import Place
from .targets import Target

if TYPE_CHECKING:
    from torch import Tensor

    from ..spaces import Surveyed
    from .fold import Fold

HELD_ENTRIES = 1 << 26
"""Entries up to which a dense delta is held while it is compressed."""

EXPERTS_BYTES = 32 << 20
"""Bytes of factors, in float32, of the experts that are merged as one batch."""


@dataclass(frozen=True)
class Member:
    """One adapter at one site. `index` is its position in the recipe."""

    index: int
    factors: SiteFactors
    weight: float

    @property
    def rank(self) -> int:
        """Rank of the delta: twice the factors' where a part of the base is taken out of it."""
        return self.factors.rank * (2 if self.factors.initial else 1)

    @property
    def coefficient(self) -> float:
        """Weight times scale: D_t = coefficient * B_t A_t."""
        return self.weight * self.factors.scale


@dataclass(frozen=True)
class BaseWeight:
    """The base's weight of a site, and where in its tensor it lies."""

    ref: TensorRef
    place: Place


@dataclass(frozen=True)
class SiteStep:
    """Merge one site. `absent` are adapters without the site that count as a zero delta: recipe position and weight.

    full_rank: rank of the method's result, an upper bound (min(d_out, d_in) where it is dense). cut: rank the result is
    truncated to, None: as it is. width: rank it is written with, by zero padding.
    cuts: of fused experts, the rank of every one where these differ; `cut` is then the largest. columns: how their factors
    are written. weight: the base's, where a member's delta depends on it.
    space: its name and options. survey: parameters for all adapters of the recipe, where statistics span all sites.
    """

    site: str
    members: tuple[Member, ...]
    absent: tuple[tuple[int, float], ...]
    method: Method
    params: Params
    survey: Params | None
    space: tuple[str, BaseModel] | None
    pre: tuple[tuple[Pre, Params], ...]
    post: tuple[tuple[Post, Params], ...]
    full_rank: int
    cut: int | None
    width: int
    names: tuple[str, str]
    cuts: tuple[int, ...] | None = None
    columns: Columns = "peft"
    weight: BaseWeight | None = None

    @property
    def on_deltas(self) -> bool:
        """Whether the method is given DoRA deltas as they are, not factors that stand for them."""
        return takes_deltas(self.method, self.space, self.pre, self.post)

    @property
    def experts(self) -> int | None:
        """How many experts a fused parameter holds, each merged by itself; None for every other site."""
        return self.model.experts if self.model.kind == "experts" else None

    def each(self) -> tuple[SiteStep, ...]:
        """A step for every expert, called `site[e]`; the step itself where there are none."""
        if self.experts is None:
            return (self,)
        cuts = self.cuts or (self.cut,) * self.experts
        return tuple(replace(self, site=f"{self.site}[{e}]", cut=cut, cuts=None) for e, cut in enumerate(cuts))

    @property
    def model(self) -> SiteFactors:
        """The factors whose geometry the result has."""
        return self.members[0].factors

    @property
    def dense(self) -> bool:
        """The method's result is dense and is made in blocks of rows."""
        return self.space is not None and self.space[0] == "full"

    @property
    def survey_key(self) -> tuple[object, ...]:
        """Steps with one key are surveyed together."""
        return self.method.name, self.survey, self.space

    @property
    def batches(self) -> bool:
        """Whether sites of one shape can run as one launch: sizes in some spaces depend on the numbers."""
        return self.weight is None and (self.space is None or self.space[0] in ("ctm", "factor"))

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(member.rank for member in self.members)

    @property
    def shape_key(self) -> tuple[object, ...]:
        """Steps with one key can run as one batch."""
        return (
            self.method.name,
            self.params,
            self.space,
            self.cut,
            self.width,
            self.absent,
            self.experts,
            self.model.d_out,
            self.model.d_in,
            tuple(
                (m.index, m.weight, m.factors.scale, m.rank, m.factors.a.spec.dtype, m.factors.b.spec.dtype)
                for m in self.members
            ),
        )

    @property
    def read_bytes(self) -> int:
        return sum(member.factors.nbytes for member in self.members)

    @property
    def work_bytes(self) -> int:
        """Estimated peak memory of the step: the factors as stored, three copies of them in float32, and the result."""
        width = self.model.d_in + self.model.d_out
        rank_sum = sum(self.ranks)
        small = 8 * 6 * min(rank_sum, max(self.model.d_in, self.model.d_out)) ** 2
        work = 4 * width * 3 * rank_sum + small
        together = min(self.experts or 1, self.experts_at_once)
        result = 4 * width * 2 * self.width * (self.experts or 1)
        return self.read_bytes + work * together + result + self._delta_bytes + self._initial_bytes

    @property
    def experts_at_once(self) -> int:
        """How many experts are merged as one batch: where methods allow for batches, as many as bound the working memory."""
        if not self.batches:
            return 1
        return max(1, EXPERTS_BYTES // (4 * (self.model.d_in + self.model.d_out) * sum(self.ranks)))

    @property
    def fold_bytes(self) -> int:
        """Estimated peak memory of the step when its result is added to a base, the base's own numbers apart."""
        rank_sum = sum(self.ranks)
        factors = 16 * (self.model.d_in + self.model.d_out) * min(rank_sum, self.model.d_in, self.model.d_out)
        blocks = 4 * 4 * (1 << 20) if self.dense else 0
        base = self._initial_bytes + (0 if self.on_deltas and self.cut is None else self._delta_bytes)
        return self.read_bytes + factors * max(1, self.model.experts) + blocks + base

    @property
    def _initial_bytes(self) -> int:
        """Estimated memory for the factors with which PiSSA and OLoRA begin: the weight as stored, and PiSSA's eigenvectors."""
        inits = {member.factors.initial for member in self.members} - {None}
        if self.weight is None or not inits:
            return 0
        side = min(self.model.d_out, self.model.d_in)
        stored = self.weight.ref.spec.nbytes * self.model.d_out * self.model.d_in // self.weight.ref.spec.numel
        return stored + 8 * 4 * (1 << 20) + ("pissa" in inits) * 8 * 3 * side**2

    @property
    def _delta_bytes(self) -> int:
        """Estimated memory for a DoRA delta as a whole, which is held up to a size, and for tiles of it in float64."""
        if self.weight is None or not any(member.factors.magnitude for member in self.members):
            return 0
        return 4 * min(self.model.d_out * self.model.d_in, HELD_ENTRIES) + 8 * 4 * (1 << 20)

    def specs(self, dtype: str) -> tuple[TensorSpec, TensorSpec]:
        """The two tensors that are written, A first."""
        if self.experts is not None:
            return (
                TensorSpec(self.names[0], dtype, (self.experts * self.width, self.model.d_in)),
                TensorSpec(self.names[1], dtype, (self.model.d_out, self.width * self.experts)),
            )
        kernel = self.model.kernel
        ones = (1,) * (len(kernel) - 1)
        return (
            TensorSpec(self.names[0], dtype, (self.width, *kernel)),
            TensorSpec(self.names[1], dtype, (self.model.d_out, self.width, *ones)),
        )

    def stored(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The merged factors as they are written.

        Shapes: a (width, d_in) and b (d_out, width), of fused experts (E, width, d_in) and (E, d_out, width).
        """
        if self.experts is not None:
            return pack(a, b, self.columns)
        first, second = self.specs("float32")
        return a.reshape(first.shape), b.reshape(second.shape)


def takes_deltas(method: Method, space: tuple[str, BaseModel] | None, pre: Sequence[object], post: Sequence[object]) -> bool:
    """Whether dense deltas will do: for weighted sums and for element-wise methods in full space, without other steps."""
    whole = space is None if method.kind == "coefficient" else space is not None and space[0] == "full"
    return whole and not pre and not post


@dataclass(frozen=True)
class ExtraStep:
    """Produce one tensor that is not a LoRA factor.

    `rule`: `equal`: all inputs must agree bit for bit; `mean`: weighted mean; `first`: the single input given is taken.
    """

    name: str
    refs: tuple[TensorRef, ...]
    weights: tuple[float, ...]
    rule: Literal["equal", "mean", "first"]
    spec: TensorSpec

    @property
    def read_bytes(self) -> int:
        return sum(ref.spec.nbytes for ref in self.refs)

    @property
    def work_bytes(self) -> int:
        """The tensor as read, in float32, and the accumulated mean."""
        return 3 * 4 * self.spec.numel


@dataclass(frozen=True)
class Plan:
    """Everything that will happen; the numbers are all that is missing.

    rank: the uniform rank of the output, None while it depends on the data or differs by site.
    dropped: tensors the recipe's own word leaves out, with the reason. notes: remarks for the user.
    fold: where the result goes in its base, None for an adapter. base: what the numbers depend on besides the adapters.
    surveyed: statistics that span all sites, by `SiteStep.survey_key`, where deciding the ranks took them already.
    """

    recipe: Recipe
    adapters: tuple[Adapter, ...]
    target: Target
    dtype: str
    steps: tuple[SiteStep, ...]
    extras: tuple[ExtraStep, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    fold: Fold | None = None
    base: Checkpoint | None = None
    surveyed: Mapping[object, Surveyed] = field(default_factory=dict[object, "Surveyed"])

    @property
    def rank(self) -> int | None:
        widths = {step.width for step in self.steps}
        return widths.pop() if len(widths) == 1 else None

    @property
    def rank_depends_on_data(self) -> bool:
        return not isinstance(self.recipe.output.rank, int | str)

    @property
    def random(self) -> bool:
        """Whether random numbers are drawn anywhere, so that the inputs' identities matter."""
        return any(step.dense or step.weight or step.method.random(step.params) for step in self.steps)

    def with_ranks(self, cuts: Mapping[str, int], widest: int) -> Plan:
        """The plan once the rank of every site is known; padded to `widest` unless the recipe says otherwise."""
        return replace(
            self,
            steps=tuple(self._with_rank(step, [cuts[each.site] for each in step.each()], widest) for step in self.steps),
        )

    def _with_rank(self, step: SiteStep, ranks: Sequence[int], widest: int) -> SiteStep:
        return replace(
            step,
            cut=min(max(ranks), step.full_rank),
            cuts=None if step.experts is None else tuple(min(rank, step.full_rank) for rank in ranks),
            width=widest if self.recipe.output.uniform else max(ranks),
        )

    @property
    def factor_specs(self) -> tuple[TensorSpec, ...]:
        """The LoRA tensors of the output in the order they lie in its file."""
        return tuple(sorted((spec for step in self.steps for spec in step.specs(self.dtype)), key=lambda spec: spec.name))

    @property
    def extra_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(sorted((step.spec for step in self.extras), key=lambda spec: spec.name))

    @property
    def read_bytes(self) -> int:
        if self.fold is not None:
            changed = sum(change.read_bytes for change in self.fold.changes)
            return sum(step.read_bytes for step in self.steps) + changed + self.fold.read_bytes
        return sum(step.read_bytes for step in (*self.steps, *self.extras))

    @property
    def write_bytes(self) -> int:
        if self.fold is not None:
            return self.fold.write_bytes
        return sum(spec.nbytes for spec in (*self.factor_specs, *self.extra_specs))

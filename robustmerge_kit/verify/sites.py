"""Checks of single sites and tensors of an output, each from its inputs to the comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..plan import Change, ExtraStep, Fold, Place, Plan, SiteStep
from ..recipe import EnergyRank
from .expect import Keys, expect
from .expected import EXACT_SIDE, ByRows, Expected
from .factored import Written, compare_factors
from .folded import compare_change, compare_copy, compare_site
from .outputs import AdapterOutput, ModelOutput, extra_values
from .own import OwnCode
from .precision import BITS, first_beyond, half_step
from .records import Check
from .stack import Factors, Stack, read_stacks

Job = SiteStep | ExtraStep | Change | str
"""A site, a tensor made of whole tensors of the inputs, or the name of a tensor that is the base's own."""


@dataclass(frozen=True)
class Checker:
    """What all checks of a plan share. entries: numbers of a tensor that are made at a time.

    ranks: site -> the rank it was cut to, of the receipt, for ranks that depend on the data.
    """

    plan: Plan
    keys: Keys
    own: OwnCode
    ranks: Mapping[str, int]
    entries: int

    # --- adapters -----------------------------------------------------------------------------------------------------

    def adapter_site(self, step: SiteStep, output: AdapterOutput) -> Check:
        """The check of one site of an adapter; of fused experts the worst of them."""
        written = output.written(step)
        if written is None:
            return _absent(step.site, step.method.name)
        parts = [
            self._one(one, stack, factors, own) for (one, stack, factors), own in zip(read_stacks(step), written, strict=True)
        ]
        return replace(_worst(parts), name=step.site)

    def _one(self, step: SiteStep, stack: Stack, factors: Factors, written: Written) -> Check:
        cut = written.rank if self.plan.rank_depends_on_data else step.cut
        first: Check | None = None
        for expected in self._candidates(step, stack, factors):
            tile = max(1, self.entries // expected.shape[1])
            check = compare_factors(step.site, step.method.name, expected, written, tile, cut)
            if check.problem is None:
                return self._judge_rank(check, expected, written)
            first = first or check
        assert first is not None
        return first

    def _judge_rank(self, check: Check, expected: Expected, written: Written) -> Check:
        """Whether a rank that keeps a share of the energy is the smallest that does."""
        rule = self.plan.recipe.output.rank
        if not isinstance(rule, EnergyRank):
            return check
        squares = expected.values if isinstance(expected, ByRows) else expected.spectrum[1].square()
        total = float(squares.sum())
        k = written.rank
        kept, fewer = (float(squares[: max(0, n)].sum()) / total if total else 1.0 for n in (k, k - 1))
        if kept < rule.energy - 1e-5:
            return replace(check, problem=f"keeps {kept:.6f} of the energy, the recipe asks for {rule.energy:g}")
        if k > 1 and rule.energy < 1 and fewer > rule.energy + 1e-5:
            return replace(check, problem=f"has {k} directions, though fewer keep {rule.energy:g} of the energy")
        return check

    def extra(self, step: ExtraStep, output: AdapterOutput) -> Check:
        """A head, a bias or another tensor beside the factors."""
        ref = output.tensors.get(step.spec.name)
        if ref is None or ref.spec.shape != step.spec.shape:
            return _absent(step.spec.name, None)
        wanted, size = extra_values(step)
        found = ref.read()
        if size is None or ref.spec.dtype not in BITS:
            same = wanted.to(found.dtype).contiguous().view(-1).view(torch.uint8) == found.view(-1).view(torch.uint8)
            at = None if bool(same.all()) else int((~same).int().argmax()) // found.element_size()
            problem = None if at is None else f"differs from the input's first at element {at}"
            return Check(step.spec.name, None, "bytes", found.numel(), float(at is not None), 0.0, 0.0, 0, problem)
        error = (found.double() - wanted).reshape(1, -1)
        most = torch.maximum(wanted.abs(), found.double().abs())
        allowed = (half_step(most, ref.spec.dtype) + size * 2.0**-21).reshape(1, -1)
        bad = first_beyond(error, allowed)
        problem = None if bad is None else f"differs from the mean first at element {bad[1]}"
        norm = float(wanted.norm()) or 1.0
        share, bound = float(error.norm()) / norm, float(allowed.norm()) / norm
        return Check(step.spec.name, None, "independent", found.numel(), share, bound, 0.0, 0, problem)

    # --- models -------------------------------------------------------------------------------------------------------

    def model_site(self, step: SiteStep, fold: Fold, output: ModelOutput) -> Check:
        """The check of one site of a model, in all its places."""
        places = fold.places[step.site]
        if any(place.tensor not in output.pairs for place in places):
            return _absent(step.site, step.method.name)
        stacks = read_stacks(step)
        choices = [self._cut_candidates(one, stack, factors) for one, stack, factors in stacks]
        first: Check | None = None
        for parts in zip(*choices, strict=False):
            own: list[tuple[Expected, Sequence[Place]]] = [
                (part, [place for place in places if place.expert in (None, e)]) for e, part in enumerate(parts)
            ]
            check = compare_site(step.site, step.method.name, own, output.pairs, self.entries)
            first = first or check
            if check.problem is None:
                return check
        assert first is not None
        return first

    def _cut_candidates(self, step: SiteStep, stack: Stack, factors: Factors) -> Iterator[Expected]:
        """What may be in a model, after the rank limit that the recipe sets."""
        cut = self.ranks.get(step.site.partition("[")[0]) if self.plan.rank_depends_on_data else step.cut
        for expected in self._candidates(step, stack, factors):
            if cut is None:
                yield expected
            elif isinstance(expected, ByRows) and min(expected.shape) > EXACT_SIDE:
                yield self.own.expect(step, stack, factors, double=False, cut=cut)
                return
            else:
                yield expected.cut(cut)

    def change(self, change: Change, output: ModelOutput) -> Check:
        """A tensor of a model that is made of whole tensors of the inputs."""
        pair = output.pairs.get(change.tensor)
        return _absent(change.tensor, None) if pair is None else compare_change(change, pair)

    def copy(self, name: str, output: ModelOutput) -> Check:
        """What of a tensor of a model is the base's own."""
        return compare_copy(name, output.pairs[name], output.copies[name])

    # --- both ---------------------------------------------------------------------------------------------------------

    def _candidates(self, step: SiteStep, stack: Stack, factors: Factors) -> Iterator[Expected]:
        """The merged delta as it must be: by a second implementation where there is one, else by the method's own code.

        The own code may decide otherwise in float64 than in float32, so both count.
        """
        tile = max(1, self.entries // step.model.d_in)
        expected = expect(step, stack, self.keys, tile)
        if expected is not None:
            yield expected
            return
        for double in (True, False):
            yield self.own.expect(step, stack, factors, double=double)


def _absent(name: str, method: str | None) -> Check:
    return Check(name, method, "bytes", 0, 1.0, 0.0, 0.0, 0, "is not there, or cannot be compared")


def _worst(parts: Sequence[Check]) -> Check:
    """The checks of fused experts as one: the worst of them, the first that is off before all others."""
    bad = next((f"{part.name}: {part.problem}" for part in parts if part.problem), None)
    top = max(parts, key=lambda part: part.error)
    by = next((part.by for part in parts if part.by != "independent"), "independent")
    return replace(
        top,
        by=by,
        entries=sum(part.entries for part in parts),
        worst=max(part.worst for part in parts),
        undecided=sum(part.undecided for part in parts),
        problem=bad,
    )

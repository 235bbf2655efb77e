"""The tensors of an output, by what they stand for: factors of a site, or regions of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..adapters import SiteFactors, check_values, read_adapter
from ..checkpoint import Checkpoint, open_checkpoint
from ..plan import ExtraStep, Fold, Plan, SiteStep
from ..shards import TensorRef, TensorSpec, open_tensors
from ..sources import Source
from .factored import Written
from .folded import Pair
from .records import Finding

FLOATING = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class AdapterOutput:
    """A merged adapter: its factors as any reader understands them, and its tensors as stored."""

    factors: Mapping[str, SiteFactors]
    tensors: Mapping[str, TensorRef]
    findings: tuple[Finding, ...]

    def written(self, step: SiteStep) -> list[Written] | None:
        """The factors of a site, of every fused expert by itself; None where the file is not read so."""
        factors = self.factors.get(step.names[0])
        if factors is None:
            return None
        if factors.d_out != step.model.d_out and factors.kind == "experts":
            factors = factors.flip()
        a, b = factors.read()
        for ref, values in zip((factors.a, factors.b), (a, b), strict=True):
            check_values(ref.where, values)
        dtype = factors.a.spec.dtype
        if step.experts is not None and a.ndim == 2:
            # A single expert is read as the module it stands for.
            a, b = (a, b) if factors.d_out == step.model.d_out else (b.T, a.T)
            a, b = a[None], b[None]
        if step.experts is not None and len(a) != step.experts:
            return None
        if step.experts is None:
            return [Written(factors.scale * b.double(), a.double(), dtype)]
        return [Written(factors.scale * b[e].double(), a[e].double(), dtype) for e in range(step.experts)]


def open_adapter(folder: Path, plan: Plan) -> AdapterOutput:
    """Read the headers of a merged adapter, and compare names and dtypes with the plan.

    Raises: InputError when the files are broken.
    """
    target = plan.target
    tensors = dict(open_tensors(folder / target.weights).tensors)
    if target.extras is not None:
        tensors |= open_tensors(folder / target.extras).tensors
    experts = [step.model for step in plan.steps if step.experts is not None]
    read = read_adapter(
        Source(str(folder), folder, None if target.layout != "same" else folder / target.weights),
        label="output",
        allow=("links",),
        expert_axes=experts[0].axes if experts else None,
        expert_layout="unsloth" if target.columns == "unsloth" else "peft",
    )
    factors = {site.a.spec.name: site for site in read.sites.values()}
    wanted = {name: plan.dtype for step in plan.steps for name in step.names}
    wanted |= {step.spec.name: step.spec.dtype for step in plan.extras}
    if target.alpha_name:
        wanted |= {target.alpha_name(step.model): "float32" for step in plan.steps}
    findings = [Finding(name, "is missing") for name in sorted(wanted.keys() - tensors.keys())]
    findings += [Finding(name, "belongs to no site and no input") for name in sorted(tensors.keys() - wanted.keys())]
    for name, dtype in sorted(wanted.items()):
        if name in tensors and tensors[name].spec.dtype != dtype:
            findings.append(Finding(name, f"is {tensors[name].spec.dtype}, expected {dtype}"))
    for step in plan.steps:
        found = factors.get(step.names[0])
        shapes = None if found is None else {(found.d_out, found.d_in), *([(found.d_in, found.d_out)] * (found.experts > 1))}
        if step.names[0] in tensors and (shapes is None or (step.model.d_out, step.model.d_in) not in shapes):
            findings.append(_misread(step, found))
    return AdapterOutput(factors, tensors, tuple(findings))


def _misread(step: SiteStep, found: SiteFactors | None) -> Finding:
    if found is None:
        return Finding(step.site, "its factors are not read as a site's")
    return Finding(step.site, f"its update is {found.d_out} x {found.d_in}, expected {step.model.d_out} x {step.model.d_in}")


@dataclass(frozen=True)
class ModelOutput:
    """A folded model: every tensor beside the base's, and the elements of each that are the base's own."""

    found: Checkpoint
    pairs: Mapping[str, Pair]
    copies: Mapping[str, Sequence[tuple[int, int]]]
    findings: tuple[Finding, ...]


def open_model(folder: Path, plan: Plan, fold: Fold) -> ModelOutput:
    """Read the headers of a folded model, and compare names, shapes and dtypes with the plan.

    Raises: InputError when the files are broken.
    """
    found = open_checkpoint(Source(str(folder), folder))
    specs = _specs(plan, fold)
    findings = [Finding(name, "is missing") for name in sorted(specs.keys() - found.tensors.keys())]
    findings += [
        Finding(name, "is not in the base, and nothing adds it") for name in sorted(found.tensors.keys() - specs.keys())
    ]
    pairs: dict[str, Pair] = {}
    for name, spec in specs.items():
        if name not in found.tensors:
            continue
        own = found.tensors[name].spec
        if (own.dtype, own.shape) != (spec.dtype, spec.shape):
            findings.append(Finding(name, f"is {own.dtype} {list(own.shape)}, expected {spec.dtype} {list(spec.shape)}"))
            continue
        pairs[name] = Pair(found.tensors[name], fold.base.tensors.get(fold.origins.get(name, name)))
    whole = {change.tensor for change in fold.changes}
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place in (place for places in fold.places.values() for place in places):
        spans[place.tensor].append((place.first, place.end))
    copies = {name: _gaps(sorted(spans[name]), pair.found.spec.numel) for name, pair in pairs.items() if name not in whole}
    return ModelOutput(found, pairs, {name: gaps for name, gaps in copies.items() if gaps}, tuple(findings))


def _specs(plan: Plan, fold: Fold) -> dict[str, TensorSpec]:
    """Every tensor the model must have."""
    specs = {name: replace(ref.spec, name=name) for name, ref in fold.base.tensors.items()}
    specs |= {name: replace(fold.base.tensors[origin].spec, name=name) for name, origin in fold.origins.items()}
    specs |= {change.tensor: change.spec for change in fold.changes}
    dtype = plan.recipe.output.dtype
    return {name: replace(spec, dtype=dtype) if dtype and spec.dtype in FLOATING else spec for name, spec in specs.items()}


def _gaps(spans: Sequence[tuple[int, int]], numel: int) -> list[tuple[int, int]]:
    gaps: list[tuple[int, int]] = []
    position = 0
    for start, end in (*spans, (numel, numel)):
        if start > position:
            gaps.append((position, start))
        position = max(position, end)
    return gaps


def extra_values(step: ExtraStep) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a tensor beside the factors must be: an input's own value, or a weighted mean with the sum of its magnitudes."""
    if step.rule != "mean":
        return step.refs[0].read(), None
    total = sum(step.weights)
    mean = torch.zeros(step.spec.shape, dtype=torch.float64)
    size = torch.zeros_like(mean)
    for ref, weight in zip(step.refs, step.weights, strict=True):
        part = ref.read().double() * (weight / total)
        mean += part
        size += part.abs()
    return mean, size

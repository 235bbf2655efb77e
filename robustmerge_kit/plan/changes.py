"""What becomes of adapters' whole tensors in a folded model: heads, biases, token rows meet the base's own values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..adapters import Adapter, Extra
from ..checkpoint import Checkpoint
from ..errors import PlanError, RmkitError, raise_all
from ..recipe import FirstOf, Recipe
from ..shards import TensorRef, TensorSpec

_TOKENS = ".token_adapter.trainable_tokens_delta"
_LORA_BIAS = ".lora_B.bias"
SUMS = {"linear": True, "task_arithmetic": False, "cat": False, "svd": False}
"""Methods whose result is one weighted sum, and whether they divide by the sum of the weights by default."""


@dataclass(frozen=True)
class Part:
    """One adapter's contribution: out += coefficient * (value - base), or coefficient * value where it is a difference.

    rows: the rows of the base tensor the value's rows stand for, None for the whole tensor.
    """

    ref: TensorRef
    coefficient: float
    absolute: bool = True
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Change:
    """A tensor of the folded model that is made of whole tensors of the inputs.

    rule: `sum` adds the parts to the base's value; `equal` demands that all parts agree bit for bit and takes the first.
    spec: what is written; its shape differs from the base's only where the vocabulary or a head has grown.
    """

    tensor: str
    parts: tuple[Part, ...]
    rule: Literal["sum", "equal"]
    spec: TensorSpec

    @property
    def read_bytes(self) -> int:
        return sum(part.ref.spec.nbytes for part in self.parts)


def plan_changes(recipe: Recipe, adapters: Sequence[Adapter], base: Checkpoint) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """The changes, and a line for every tensor that the recipe drops.

    Raises: PlanError (all of them at once) for tensors that have no sound combination, with the choices there are.
    """
    names = sorted({name for adapter in adapters for name in adapter.extras})
    if recipe.extras == "drop":
        return (), tuple(f"{name}: extras: drop" for name in names)
    changes: list[Change] = []
    errors: list[RmkitError] = []
    for name in names:
        try:
            changes.append(_plan_one(name, recipe, adapters, base))
        except PlanError as error:
            errors.append(error)
    if len(errors) > 3:
        errors = [PlanError(f"{len(errors)} tensors beside the LoRA factors, the first: {errors[0].what}", hint=errors[0].hint)]
    raise_all(errors)
    seen: dict[str, Change] = {}
    for change in changes:
        if seen.setdefault(change.tensor, change) is not change:
            raise PlanError(f"{change.tensor} is given twice by the inputs", hint="drop one with extras: drop")
    return tuple(changes), ()


def _plan_one(name: str, recipe: Recipe, adapters: Sequence[Adapter], base: Checkpoint) -> Change:
    holders = {index: adapter.extras[name] for index, adapter in enumerate(adapters) if name in adapter.extras}
    kind = next(iter(holders.values())).kind
    tensor = _target(name, kind)
    if recipe.extras == "first" or isinstance(recipe.extras, FirstOf):
        index = _chosen(name, recipe, adapters, holders)
        holders, coefficients, rule = {index: holders[index]}, {index: 1.0}, "sum"
    elif recipe.extras == "mean":
        coefficients, rule = _mean(name, recipe, adapters), "sum"
    elif len(adapters) == 1 or (kind != "saved" and _is_sum(recipe)):
        coefficients, rule = _weighted(recipe, adapters), "sum"
    elif kind == "saved" and len(holders) == len(adapters):
        coefficients, rule = dict.fromkeys(holders, 1.0), "equal"
    else:
        lacking = [adapter.label for index, adapter in enumerate(adapters) if index not in holders]
        absent = f" (not in {', '.join(lacking[:3])})" if lacking else ""
        raise PlanError(
            f"{name}{absent}: {recipe.merge_method} does not say how whole values are combined",
            where="extras",
            hint="choose extras: mean (around the base's value), first, {first: NAME} or drop",
        )
    parts = tuple(_part(name, extra, coefficients[index], base, tensor) for index, extra in sorted(holders.items()))
    return Change(tensor, parts, rule, _spec(name, tensor, parts, base, [adapters[i].label for i in sorted(holders)]))


def _target(name: str, kind: str) -> str:
    if kind == "tokens":
        return f"{name.removesuffix(_TOKENS)}.weight"
    return f"{name.removesuffix(_LORA_BIAS)}.bias" if kind == "lora_bias" else name


def _part(name: str, extra: Extra, coefficient: float, base: Checkpoint, tensor: str) -> Part:
    if extra.kind == "lora_bias":
        return Part(extra.ref, coefficient * extra.scale, absolute=False)
    if extra.kind == "tokens":
        if extra.indices is None:
            raise PlanError(
                f"{name}: the configuration does not list trainable_token_indices", hint="add them to adapter_config.json"
            )
        return Part(extra.ref, coefficient, rows=extra.indices)
    return Part(extra.ref, coefficient)


def _spec(name: str, tensor: str, parts: Sequence[Part], base: Checkpoint, labels: Sequence[str]) -> TensorSpec:
    stored = base.tensors.get(tensor)
    first = parts[0]
    if not first.absolute or first.rows is not None:
        if stored is None:
            raise PlanError(f"{name}: the base has no tensor {tensor}", hint="fold into a base that has it, or extras: drop")
        for part, label in zip(parts, labels, strict=True):
            _check_rows(part, stored.spec, label, name)
        return stored.spec
    shapes = {part.ref.spec.shape for part in parts}
    if len(shapes) > 1:
        listing = ", ".join(f"{list(part.ref.spec.shape)} in {label}" for part, label in zip(parts, labels, strict=True))
        raise PlanError(f"{name} differs in shape: {listing}", where="extras", hint="choose extras: {first: NAME} or drop")
    (shape,) = shapes
    if stored is not None and stored.spec.shape == shape:
        return stored.spec
    if abs(sum(part.coefficient for part in parts) - 1) > 1e-6 and len(parts) > 1:
        raise PlanError(
            f"{name}: {list(shape)} in the inputs, "
            + (f"{list(stored.spec.shape)} in the base" if stored else "not in the base")
            + "; there is nothing to weigh it against",
            where="extras",
            hint="choose extras: mean with weights that sum to 1, or first",
        )
    if stored is not None and (len(shape) != len(stored.spec.shape) or shape[1:] != stored.spec.shape[1:]):
        raise PlanError(f"{name}: {list(shape)} in the input, {list(stored.spec.shape)} in the base: different models?")
    dtype = stored.spec.dtype if stored else _usual_dtype(base)
    return TensorSpec(tensor, dtype, shape)


def _check_rows(part: Part, base: TensorSpec, label: str, name: str) -> None:
    shape = part.ref.spec.shape
    if part.rows is None:
        if shape != base.shape:
            raise PlanError(f"{name}: {list(shape)} in {label}, {list(base.shape)} in the base")
        return
    if shape != (len(part.rows), *base.shape[1:]):
        raise PlanError(f"{name}: {list(shape)} for {len(part.rows)} listed tokens of width {list(base.shape[1:])}, in {label}")
    if max(part.rows, default=0) >= base.shape[0] or min(part.rows, default=0) < 0:
        raise PlanError(
            f"{name}: token {max(part.rows)} in {label}, the base has {base.shape[0]} rows",
            hint="resize the base's embeddings first and save it",
        )
    if len(set(part.rows)) < len(part.rows):
        raise PlanError(f"{name}: a token is listed twice in {label}")


def _usual_dtype(base: Checkpoint) -> str:
    sizes: dict[str, int] = {}
    for ref in base.tensors.values():
        sizes[ref.spec.dtype] = sizes.get(ref.spec.dtype, 0) + ref.spec.numel
    return max(sizes, key=lambda dtype: sizes[dtype])


def _chosen(name: str, recipe: Recipe, adapters: Sequence[Adapter], holders: Mapping[int, Extra]) -> int:
    if not isinstance(recipe.extras, FirstOf):
        return min(holders)
    labels = [adapter.label for adapter in adapters]
    if recipe.extras.first not in labels:
        raise PlanError(f"no input is called {recipe.extras.first!r}", hint=f"names are {', '.join(labels)}")
    index = labels.index(recipe.extras.first)
    if index not in holders:
        raise PlanError(f"{name} is not in {labels[index]}", hint=f"choose extras: {{first: {labels[min(holders)]}}}")
    return index


def _mean(name: str, recipe: Recipe, adapters: Sequence[Adapter]) -> dict[int, float]:
    weights = [_weight(recipe, index) for index in range(len(adapters))]
    if sum(weights) <= 0 or min(weights) < 0:
        raise PlanError(
            f"{name}: a mean needs weights that are not negative, got {', '.join(f'{w:g}' for w in weights)}",
            where="extras",
            hint="choose extras: first or drop",
        )
    return {index: weight / sum(weights) for index, weight in enumerate(weights)}


def _is_sum(recipe: Recipe) -> bool:
    return recipe.merge_method in SUMS and not any(override.merge_method for override in recipe.overrides)


def _weighted(recipe: Recipe, adapters: Sequence[Adapter]) -> dict[int, float]:
    """The coefficients that a weighted sum of deltas has; a single adapter of any other method counts with its weight."""
    weights = [_weight(recipe, index) for index in range(len(adapters))]
    normalize = recipe.parameters.get("normalize", SUMS.get(recipe.merge_method, False))
    gain = recipe.parameters.get("gain", 1.0)
    factor = float(gain) if isinstance(gain, int | float) and recipe.merge_method in SUMS else 1.0
    total = sum(weights) if normalize is True and recipe.merge_method in SUMS else 1.0
    return {index: factor * weight / total for index, weight in enumerate(weights)}


def _weight(recipe: Recipe, index: int) -> float:
    """The adapter's weight as one number: gradients and filters speak of sites, so they do not reach whole tensors."""
    for parameters in (recipe.adapters[index].parameters, recipe.parameters):
        value = parameters.get("weight")
        if isinstance(value, int | float):
            return float(value)
    return 1.0

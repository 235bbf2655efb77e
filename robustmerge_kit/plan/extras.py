"""What becomes of tensors that are not LoRA factors: heads, projectors, biases, token rows."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters import Adapter, Extra
from ..errors import PlanError, RmkitError
from ..recipe import FirstOf, Recipe
from ..shards import TensorSpec
from .steps import ExtraStep
from .targets import Target

_NOT_AVERAGED = {
    "bias": "bias values are absolute; merging them needs base_model",
    "lora_bias": "the bias of lora_B belongs to one adapter's update and has no place in a plain LoRA",
    "tokens": "trained token rows are absolute values for the listed tokens",
}


def plan_extras(
    recipe: Recipe, adapters: Sequence[Adapter], target: Target, dtype: str | None
) -> tuple[tuple[ExtraStep, ...], tuple[str, ...]]:
    """Steps for the extras that are kept, and a line for each that the recipe drops.

    `dtype` None keeps the stored one.

    Raises: PlanError (all of them at once) when inputs disagree and the recipe does not say what to do.
    """
    names = sorted({name for adapter in adapters for name in adapter.extras})
    if recipe.extras == "drop":
        return (), tuple(f"{name}: extras: drop" for name in names)
    steps: list[ExtraStep] = []
    errors: list[RmkitError] = []
    for name in names:
        try:
            steps.append(_plan_one(name, recipe, adapters, target, dtype))
        except PlanError as error:
            errors.append(error)
    if errors:
        raise PlanError(
            f"{len(errors)} tensors beside the LoRA factors do not agree, the first: {errors[0].what}",
            where="extras",
            hint=errors[0].hint,
        )
    return tuple(steps), ()


def _plan_one(name: str, recipe: Recipe, adapters: Sequence[Adapter], target: Target, dtype: str | None) -> ExtraStep:
    holders = [adapter for adapter in adapters if name in adapter.extras]
    if recipe.extras == "first" or isinstance(recipe.extras, FirstOf):
        chosen = _chosen(name, recipe, adapters, holders)
        return _step(name, [chosen], recipe, adapters, target, dtype, "first")
    if len(holders) < len(adapters):
        lacking = [adapter.label for adapter in adapters if name not in adapter.extras]
        if recipe.extras == "error" or recipe.missing != "renormalize":
            raise PlanError(
                f"{name} is in {', '.join(a.label for a in holders)} but not in {', '.join(lacking)}",
                hint=f"choose extras: first, extras: {{first: {holders[0].label}}} or extras: drop",
            )
    shapes = {adapter.extras[name].ref.spec.shape for adapter in holders}
    if len(shapes) > 1:
        listing = ", ".join(f"{list(adapter.extras[name].ref.spec.shape)} in {adapter.label}" for adapter in holders)
        raise PlanError(
            f"{name} differs in shape and has no mean: {listing}",
            hint=f"choose extras: {{first: {holders[0].label}}} or extras: drop",
        )
    kind = holders[0].extras[name].kind
    if recipe.extras == "mean":
        if kind in _NOT_AVERAGED:
            raise PlanError(f"{name}: {_NOT_AVERAGED[kind]}", hint="choose extras: first or extras: drop")
        return _step(name, holders, recipe, adapters, target, dtype, "mean")
    return _step(name, holders, recipe, adapters, target, dtype, "equal")


def _chosen(name: str, recipe: Recipe, adapters: Sequence[Adapter], holders: Sequence[Adapter]) -> Adapter:
    if not isinstance(recipe.extras, FirstOf):
        return holders[0]
    for adapter in adapters:
        if adapter.label == recipe.extras.first:
            if name not in adapter.extras:
                raise PlanError(f"{name} is not in {adapter.label}", hint=f"choose extras: {{first: {holders[0].label}}}")
            return adapter
    raise PlanError(
        f"no input is called {recipe.extras.first!r}", hint=f"names are {', '.join(adapter.label for adapter in adapters)}"
    )


def _step(
    name: str,
    holders: Sequence[Adapter],
    recipe: Recipe,
    adapters: Sequence[Adapter],
    target: Target,
    dtype: str | None,
    rule: str,
) -> ExtraStep:
    extras: list[Extra] = [adapter.extras[name] for adapter in holders]
    stored = extras[0].ref.spec
    weights = tuple(_weight(recipe, adapters.index(adapter)) for adapter in holders)
    if rule == "mean" and (sum(weights) <= 0 or min(weights) < 0):
        raise PlanError(
            f"{name}: a mean needs weights that are not negative, got {', '.join(f'{w:g}' for w in weights)}",
            hint="choose extras: first or extras: drop",
        )
    floating = stored.dtype in ("float64", "float32", "float16", "bfloat16")
    kept = stored.dtype if dtype is None or not floating else dtype
    spec = TensorSpec(target.extra_name(_spelled(name, extras[0], adapters)), kept, stored.shape)
    return ExtraStep(name, tuple(extra.ref for extra in extras), weights, rule, spec)  # pyright: ignore[reportArgumentType]


def _spelled(name: str, extra: Extra, adapters: Sequence[Adapter]) -> str:
    """The name PEFT loads: an adapted module keeps its own bias inside the wrapped layer."""
    module, _, leaf = name.rpartition(".")
    adapted = extra.kind == "bias" and any(module in adapter.sites for adapter in adapters)
    return f"{module}.base_layer.{leaf}" if adapted else name


def _weight(recipe: Recipe, index: int) -> float:
    """The adapter's weight as one number: gradients and filters speak of sites, so they do not reach heads."""
    for parameters in (recipe.adapters[index].parameters, recipe.parameters):
        value = parameters.get("weight")
        if isinstance(value, int | float):
            return float(value)
    return 1.0

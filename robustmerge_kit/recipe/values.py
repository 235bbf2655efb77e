"""What a parameter is at one site: scalars, gradients over the layers, filter lists, and who wins over whom.

Meanings are mergekit's. A gradient spreads its numbers evenly over the layers, first value at layer 0, last value at the last
layer, linear in between; it is always a float, so a parameter that counts something takes no gradient. Sites outside the
stack of layers (embeddings, final norm, lm_head) sit at position 0 and take the first value. In a filter list the first line
that describes the tensor wins; if none does, the value comes from the next place: override, adapter entry, recipe, default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..errors import PlanError, RecipeError
from .problems import requirement, severity, show
from .schema import Filtered, Override, Recipe, Scalar, SpaceChoice, Value

if TYPE_CHECKING:
    from ..method import Method, Params

_LAYER = re.compile(r"(?P<stack>(?:^|.*?\.)(?:layers|layer|h|blocks|block))\.(?P<number>[0-9]{1,9})(?:\.|$)")


@dataclass(frozen=True)
class SiteSettings:
    """What happens at one site. `parameters` hold a tuple, one value per recipe adapter, where adapters differ.

    weights: one per recipe adapter, in recipe order. override: position of the override that matched.
    """

    method: str
    space: SpaceChoice | None
    parameters: Mapping[str, Scalar | tuple[Scalar, ...]]
    weights: tuple[float, ...]
    override: int | None


def layer_number(site: str) -> int | None:
    """N of the first `layers.N`, `layer.N`, `h.N`, `blocks.N` or `block.N` in the name; None outside a stack of layers."""
    found = _LAYER.match(site)
    return int(found["number"]) if found else None


def stack_name(site: str) -> str:
    """The module that holds the numbered layers, e.g. `model.layers`; empty outside a stack."""
    found = _LAYER.match(site)
    return found["stack"] if found else ""


def count_layers(sites: Iterable[str]) -> dict[str, int]:
    """Number of layers of every stack, by `stack_name`: the largest layer number plus one; 0 under the empty name."""
    counts = {"": 0}
    for site in sites:
        found = _LAYER.match(site)
        if found:
            counts[found["stack"]] = max(counts.get(found["stack"], 0), int(found["number"]) + 1)
    return counts


def position(site: str, layers: int) -> float:
    """T = N / (layers - 1) in [0, 1]; 1 in a stack of one layer, 0 outside the stack."""
    number = layer_number(site)
    if number is None:
        return 0.0
    return number / (layers - 1) if layers > 1 else 1.0


def evaluate(value: Value, site: str, position: float) -> Scalar | None:
    """The scalar that `value` is at a site; None where no line of a filter list describes it.

    Gradient [v_0, .., v_m] at t: x = t m, i = floor(x), (1 - (x - i)) v_i + (x - i) v_min(i+1, m).
    Source: mergekit 0.1.5.
    """
    if not isinstance(value, list):
        return value
    numbers: list[float] = []
    for item in value:
        if isinstance(item, Filtered):
            if _describes(item, site):
                return evaluate(item.value, site, _within(item, site, position))
        else:
            numbers.append(item)
    return _interpolate(numbers, position) if numbers else None


def _interpolate(numbers: Sequence[float], position: float) -> float:
    scaled = position * (len(numbers) - 1)
    low = int(scaled)
    share = scaled - low
    return (1 - share) * numbers[low] + share * numbers[min(low + 1, len(numbers) - 1)]


def _describes(line: Filtered, site: str) -> bool:
    """Filters are matched against the base's tensor name, as mergekit does, so `q_proj.weight` finds what it means."""
    if line.filter not in (None, "*") and line.filter not in f"{site}.weight":
        return False
    number = layer_number(site)
    return line.layers is None or (number is not None and line.layers[0] <= number < line.layers[1])


def _within(line: Filtered, site: str, position: float) -> float:
    """The position inside the layers a line is for."""
    number = layer_number(site)
    if line.layers is None or number is None:
        return position
    first, end = line.layers
    return (number - first) / (end - first - 1) if end - first > 1 else 1.0


def matching_override(recipe: Recipe, site: str) -> int | None:
    """Position of the first override whose glob matches the site's name."""
    return next((index for index, override in enumerate(recipe.overrides) if fnmatchcase(site, override.match)), None)


def same_everywhere(recipe: Recipe) -> bool:
    """Whether no setting depends on the site: all values are scalars and there are no overrides."""
    places = (recipe.parameters, *(entry.parameters for entry in recipe.adapters))
    return not recipe.overrides and not any(isinstance(value, list | tuple) for place in places for value in place.values())


def effective_settings(recipe: Recipe, site: str, layers: int) -> SiteSettings:
    """Method, space, parameters and weights at a site; `layers` is the number of layers of the site's stack.

    Precedence, key by key: override, adapter entry, recipe. Parameters the site's method does not know concern another
    method of the recipe and are left out. The recipe's space stays with the kind of method it was written for.

    Raises: RecipeError where a required parameter has no value for one of the adapters; PlanError for a layer the recipe's
    ranges of layers do not cover.
    """
    number = layer_number(site)
    if recipe.depth is not None and number is not None and number >= recipe.depth:
        hint = "layer ranges must cover all layers; rmkit does not remove layers"
        raise PlanError(f"the recipe's slices end at layer {recipe.depth}, and the adapters have layer {number}", hint=hint)
    index = matching_override(recipe, site)
    override = recipe.overrides[index] if index is not None else None
    name = (override and override.merge_method) or recipe.merge_method
    fields = method_named(name).params.model_fields
    where = position(site, layers)
    parameters: dict[str, Scalar | tuple[Scalar, ...]] = {}
    for key in _given(recipe, override):
        if key in fields:
            value = _resolve(recipe, override, key, site, where, name)
            if value is not None:
                parameters[key] = value
    weight = _resolve(recipe, override, "weight", site, where, name)
    weights = weight if isinstance(weight, tuple) else (1.0 if weight is None else weight,) * len(recipe.adapters)
    return SiteSettings(
        method=name,
        space=_space(recipe, override, name),
        parameters=parameters,
        weights=tuple(float(each) for each in weights),
        override=index,
    )


def _given(recipe: Recipe, override: Override | None) -> list[str]:
    places = (recipe.parameters, *(entry.parameters for entry in recipe.adapters), override.parameters if override else {})
    return [key for key in dict.fromkeys(key for place in places for key in place) if key != "weight"]


def _resolve(
    recipe: Recipe, override: Override | None, key: str, site: str, where: float, method: str
) -> Scalar | tuple[Scalar, ...] | None:
    """One value for all adapters, one per adapter where entries set it, None where nothing does."""
    if override and key in override.parameters:
        value = evaluate(override.parameters[key], site, where)
        if value is not None:
            return value
    common = evaluate(recipe.parameters[key], site, where) if key in recipe.parameters else None
    if not any(key in entry.parameters for entry in recipe.adapters):
        return common
    each: list[Scalar | None] = []
    for entry in recipe.adapters:
        value = evaluate(entry.parameters[key], site, where) if key in entry.parameters else None
        each.append(common if value is None else value)
    if all(value is None for value in each):
        return None
    if any(value is None for value in each):
        each = [_default(method, key, recipe.adapters[t].adapter, site) if v is None else v for t, v in enumerate(each)]
    return tuple(value for value in each if value is not None)


def _default(method: str, key: str, adapter: str, site: str) -> Any:
    """A parameter's default, for the adapters that neither their entry nor the recipe gives a value."""
    if key == "weight":
        return 1.0
    field = method_named(method).params.model_fields[key]
    if field.is_required():
        raise RecipeError(
            f"{method} needs a {key} for every adapter, and {adapter!r} has none here",
            where=site,
            hint=f"add parameters: {{{key}: ..}}",
        )
    return field.get_default(call_default_factory=True, validated_data={})


def _space(recipe: Recipe, override: Override | None, name: str) -> SpaceChoice | None:
    if override and override.space is not None:
        return override.space
    if method_named(name).kind != method_named(recipe.merge_method).kind:
        return None
    return recipe.space


@lru_cache(maxsize=256)
def method_named(name: str) -> Method:
    """The method of that name; looked up once per process, since a look-up scans the installed packages.

    Raises: RecipeError for an unknown name, PluginError for a broken plugin.
    """
    from ..methods import find

    return find(name)


def resolve_params(method: Method, values: Mapping[str, Any], where: str = "") -> Params:
    """A method's own settings from the parameters of a site, checked; `where` starts the message.

    Raises: RecipeError for values the method refuses, which load_recipe can only see where they do not depend on the site.
    """
    try:
        return method.params(**values)
    except ValidationError as error:
        found = max(error.errors(include_url=False), key=lambda each: severity(each["type"]))
        name = next((step for step in found["loc"] if isinstance(step, str)), "")
        if found["type"] == "missing":
            hint = f"add it under parameters: {{{name}: ..}}"
            raise RecipeError(f"{method.name} needs the parameter {name}", where=where, hint=hint) from error
        what, hint = requirement(found)
        got = f", got {show(found['input'])}" if name else ""
        raise RecipeError(f"{name or method.name} {what}{got}", where=where, hint=hint) from error

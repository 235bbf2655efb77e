"""mergekit's slices, all layers in order -> parameters that are filter lists over ranges of layers.

In a slice mergekit spreads a gradient over the slice's own layers. Tensors before the stack belong to the first slice and
lm_head to the last one, both at position 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import RecipeError

Parameters = Mapping[str, Any]
Line = dict[str, Any]


def flatten(
    slices: Sequence[Mapping[str, Any]], shared: Parameters, default: Callable[[str], Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The models with parameters over all layers, and the parameters of all models.

    `default` is the value of a parameter where no line of a filter list describes a tensor, None where there is none.

    Raises: RecipeError where a parameter has no value for some tensors.
    """
    ranges = [tuple(each["sources"][0]["layer_range"]) for each in slices]
    models: list[dict[str, Any]] = []
    for number, source in enumerate(slices[0]["sources"]):
        own = [each["sources"][number].get("parameters", {}) for each in slices]
        places = [(mine, each.get("parameters", {}), shared) for mine, each in zip(own, slices, strict=True)]
        names = dict.fromkeys(name for mine in own for name in mine)
        models.append({"model": source["model"], "parameters": {name: _lines(name, ranges, places, default) for name in names}})
    places = [(each.get("parameters", {}), shared) for each in slices]
    names = dict.fromkeys(name for place in places for settings in place for name in settings)
    return models, {name: _lines(name, ranges, places, default) for name in names}


def _lines(
    name: str, ranges: Sequence[tuple[int, ...]], places: Sequence[Sequence[Parameters]], default: Callable[[str], Any]
) -> list[Line]:
    """One parameter as a filter list: lm_head, then the layers of every slice, then what stands before the stack."""
    chains = [_chain(name, [settings[name] for settings in place if name in settings], default(name)) for place in places]
    head = next((line["value"] for line in chains[-1] if line.get("filter", "") in "lm_head.weight"), None)
    first = [{"filter": "lm_head", "value": head}] if head is not None else []
    middle = [{**line, "layers": list(span)} for span, chain in zip(ranges, chains, strict=True) for line in chain]
    return [*first, *middle, *chains[0]]


def _chain(name: str, values: Sequence[Any], default: Any) -> list[Line]:
    """Values from strongest to weakest as one filter list, closed by the default."""
    lines: list[Line] = []
    for value in (*values, default):
        if value is None:
            continue
        if not (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
            return [*lines, {"value": value}]
        for line in value:
            if line.get("filter", "*") == "*":
                return [*lines, {"value": line["value"]}]
            lines.append({"filter": line["filter"], "value": line["value"]})
    raise RecipeError(
        f"{name} has no value for the tensors of a slice that no filter describes", hint="end it with {value: ..}"
    )

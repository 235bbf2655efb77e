"""JSON Schema of a recipe, for editors: both forms, all methods' parameters with their meaning and range."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..errors import RmkitError
from .composed_schema import SUFFIX, composed
from .mergekit import MergekitRecipe
from .parameters import WEIGHT
from .schema import CoreOptions, CtmOptions, NoOptions, Recipe
from .values import method_named

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_MERGEKIT_NAMES = ("lambda", "select_topk", "int8_mask", "rescale", "nuslerp_row_wise", "nuslerp_flatten")


def json_schema() -> dict[str, Any]:
    """The schema, draft 2020-12, of every recipe rmkit accepts; unknown keys, methods and parameters are refused.

    A plugin that cannot be loaded keeps its name and loses its parameters.
    """
    models: list[type[BaseModel]] = [Recipe, MergekitRecipe, CoreOptions, CtmOptions, NoOptions]
    _, generated = models_json_schema([(model, "validation") for model in models], by_alias=True)
    definitions: dict[str, Any] = generated["$defs"]
    properties = _parameters_of_methods(definitions)
    known = sorted({name for each in properties.values() for name in each} | {WEIGHT})
    for definition in definitions.values():
        _name_methods(definition, list(properties))
        _name_parameters(definition, [*known, *_MERGEKIT_NAMES] if definition.get("title") in _OF_MERGEKIT else known)
    definitions["Recipe"]["allOf"] = definitions["MergekitRecipe"]["allOf"] = [
        {
            "if": {"properties": {"merge_method": {"const": method}}, "required": ["merge_method"]},
            "then": {"properties": {"parameters": {"properties": each}}},
        }
        for method, each in properties.items()
    ]
    _space_options(definitions)
    _steps(definitions)
    for name in ("Recipe", "MergekitRecipe"):
        definitions[name]["properties"]["vars"]["additionalProperties"] = False
    return {
        "$schema": DIALECT,
        "title": "rmkit recipe",
        "type": "object",
        "if": _any_of_keys("extends", "vars"),
        "then": _by_form(
            f"Recipe{SUFFIX}", f"MergekitRecipe{SUFFIX}", [{"required": ["extends"], "not": {"required": ["adapters"]}}]
        ),
        "else": _by_form("Recipe", "MergekitRecipe"),
        "$defs": {**definitions, **composed(definitions)},
    }


def _by_form(ours: str, mergekits: str, either: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Our form, or mergekit's where its inputs are named; what meets `either` may be of both, since its parent decides."""
    forms: dict[str, Any] = {
        "if": _any_of_keys("models", "slices"),
        "then": {"$ref": f"#/$defs/{mergekits}"},
        "else": {"$ref": f"#/$defs/{ours}"},
    }
    if not either:
        return forms
    both = [{"$ref": f"#/$defs/{ours}"}, {"$ref": f"#/$defs/{mergekits}"}]
    return {"if": {"anyOf": either}, "then": {"anyOf": both}, "else": forms}


def _any_of_keys(*keys: str) -> dict[str, Any]:
    return {"anyOf": [{"required": [key]} for key in keys]}


_OF_MERGEKIT = ("MergekitRecipe", "Model", "Source", "Slice")


def _parameters_of_methods(definitions: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every method's parameters as properties: one value, a gradient where values between make sense, or a filter list."""
    from ..methods import names

    value = definitions["Filtered"]
    found: dict[str, dict[str, Any]] = {}
    for name in names():
        try:
            params = method_named(name).params
        except RmkitError:
            found[name] = {}
            continue
        own = params.model_json_schema(by_alias=True)
        definitions.update(own.get("$defs", {}))
        found[name] = {key: _values(field, value) for key, field in own.get("properties", {}).items()}
    return found


def _values(field: dict[str, Any], filtered: dict[str, Any]) -> dict[str, Any]:
    """A parameter's scalars, and the lists of them that a recipe may hold."""
    members = field.get("anyOf", [field])
    scalars = [_plain(member) for member in members if member.get("type") not in ("array", "null")]
    lines = {
        "type": "object",
        "additionalProperties": False,
        "required": ["value"],
        "properties": {**filtered["properties"], "value": {"anyOf": _with_gradients(scalars)}},
    }
    told = {key: field[key] for key in ("description", "default") if key in field}
    return {**told, "anyOf": [*_with_gradients(scalars), {"type": "array", "minItems": 1, "items": lines}]}


def _with_gradients(scalars: list[dict[str, Any]]) -> list[dict[str, Any]]:
    numbers = [scalar for scalar in scalars if scalar.get("type") == "number"]
    return [*scalars, *({"type": "array", "minItems": 1, "items": number} for number in numbers)]


def _plain(member: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in member.items() if key not in ("title", "description", "default")}


def _name_methods(definition: dict[str, Any], methods: list[str]) -> None:
    method = definition.get("properties", {}).get("merge_method")
    if method is None:
        return
    for member in method.get("anyOf", [method]):
        if member.get("type") == "string":
            member.pop("minLength", None)
            member["enum"] = methods


def _name_parameters(definition: dict[str, Any], names: list[str]) -> None:
    for each in (definition, *definition.get("anyOf", ())):
        parameters = each.get("properties", {}).get("parameters")
        if parameters is not None:
            parameters["propertyNames"] = {"enum": names}


def _steps(definitions: dict[str, Any]) -> None:
    """The steps by name, with their parameters."""
    from ..transforms import POST, PRE

    for key, steps in (("pre", PRE), ("post", POST)):
        own: dict[str, dict[str, Any]] = {step.name: step.params.model_json_schema() for step in steps}
        for schema in own.values():
            definitions.update(schema.pop("$defs", {}))
        closed = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False, "properties": own}
        for name in ("Recipe", "MergekitRecipe"):
            definitions[name]["properties"][key]["items"] = {"anyOf": [{"enum": list(own)}, closed]}


def _space_options(definitions: dict[str, Any]) -> None:
    """The options of every space instead of any mapping."""
    options = {"core": "CoreOptions", "ctm": "CtmOptions"}
    properties = {
        name: {"$ref": f"#/$defs/{options.get(name, 'NoOptions')}"} for name in ("full", "core", "knots", "ctm", "factor")
    }
    closed = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False, "properties": properties}
    for name in ("Recipe", "MergekitRecipe", "Override"):
        for member in definitions[name]["properties"]["space"]["anyOf"]:
            if "oneOf" in member:
                member["oneOf"] = [each if each.get("type") == "string" else closed for each in member["oneOf"]]

"""JSON Schema of a recipe that extends another or has variables: keys may be left to the parent, values to a variable."""

from __future__ import annotations

from typing import Any

from .variables import NAME

SUFFIX = "InParts"

_ELSEWHERE = {"$ref": "#/$defs/Elsewhere"}
_DEFINITION: dict[str, Any] = {
    "type": ["string", "null"],
    "pattern": f"^<{NAME}>$",
    "description": "A variable, or nothing: then the parent's value is taken away.",
}


def composed(definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions again, under other names, for such recipes."""
    found = {f"{name}{SUFFIX}": _loosened(definition) for name, definition in definitions.items()}
    for name in ("Recipe", "MergekitRecipe"):
        whole = found[f"{name}{SUFFIX}"]
        whole.pop("required", None)
        for key in ("extends", "vars"):
            whole["properties"][key] = definitions[name]["properties"][key]
    return {**found, "Elsewhere": _DEFINITION}


def _loosened(schema: Any) -> Any:
    """A schema whose values may all be variables; conditions stay as they are."""
    if isinstance(schema, list):
        return [_loosened(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    loose: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "if":
            loose[key] = value
        elif key == "$ref":
            loose[key] = f"{value}{SUFFIX}"
        elif key == "properties":
            loose[key] = {name: _or_elsewhere(each) for name, each in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            loose[key] = _or_elsewhere(value)
        else:
            # of forms that are told apart by the type of what they hold, a variable is each
            loose["anyOf" if key == "oneOf" else key] = _loosened(value)
    return loose


def _or_elsewhere(schema: Any) -> Any:
    told = {key: schema[key] for key in ("description",) if isinstance(schema, dict) and key in schema}
    return {**told, "anyOf": [_loosened(schema), _ELSEWHERE]}

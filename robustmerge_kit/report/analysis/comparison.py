"""Other methods for the adapters of a recipe: what `--compare` asks for, and the recipes that answer it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import RmkitError, Several, UsageError
from ...methods import find
from ...plan import Inputs, Plan, make_plan
from ...recipe import Recipe

SYNTAX = "METHOD or METHOD:parameter=value:.., e.g. linear,ties:density=0.2:space=core"


@dataclass(frozen=True)
class Candidate:
    """A method to compare with: `label` is how it was asked for."""

    label: str
    method: str
    space: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])


def parse_candidates(text: str) -> list[Candidate]:
    """The methods of a comma-separated list; a repeated one counts once.

    Raises: UsageError for what is not METHOD:key=value:..
    """
    parts = [part.strip() for part in text.split(",")]
    return [_parse(part, text) for part in dict.fromkeys(parts)]


def _parse(part: str, text: str) -> Candidate:
    method, *settings = part.split(":")
    if not method:
        raise UsageError(f"--compare {text!r}: a method's name is missing", hint=f"write {SYNTAX}")
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not key or not sign or not value:
            raise UsageError(f"--compare {part!r}: {setting!r} is not parameter=value", hint=f"write {SYNTAX}")
        if key in found:
            raise UsageError(f"--compare {part!r}: {key} is given twice")
        found[key] = _value(value)
    space = found.pop("space", None)
    return Candidate(part, method, None if space is None else str(space), found)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def plan_candidate(recipe: Recipe, candidate: Candidate, inputs: Inputs) -> Plan:
    """Plan a recipe's adapters with another method.

    Raises: RmkitError that names the candidate, when there is no such method or it does not take these adapters or parameters.
    """
    try:
        _check(candidate)
        return make_plan(with_method(recipe, candidate), inputs)
    except Several as errors:
        raise Several(_named(error, candidate) for error in errors.errors) from errors
    except RmkitError as error:
        raise _named(error, candidate) from error


def _named(error: RmkitError, candidate: Candidate) -> RmkitError:
    error.where = f"--compare {candidate.label}: {error.where}".removesuffix(": ")
    return error


def _check(candidate: Candidate) -> None:
    """Parameters must be the method's own, and those without a default must be given."""
    fields = find(candidate.method).params.model_fields
    for name in candidate.parameters:
        if name not in fields:
            near = difflib.get_close_matches(name, [*fields, "space"], n=1)
            known = ", ".join([*fields, "space"])
            hint = f"did you mean {near[0]}?" if near else f"it has {known}"
            raise UsageError(f"{candidate.method} has no parameter {name!r}", hint=hint)
    for name, field_ in fields.items():
        if field_.is_required() and name not in candidate.parameters:
            hint = f"write --compare {candidate.label}:{name}=VALUE; `rmkit methods {candidate.method}` explains it"
            raise UsageError(f"{candidate.method} needs the parameter {name}", hint=hint)


def with_method(recipe: Recipe, candidate: Candidate) -> Recipe:
    """The recipe with another method everywhere; adapters, weights, steps and output stay.

    The rank may be cut where the method makes all singular values alike, because nothing is written.
    """
    output = recipe.output.model_copy(update={"allow_arbitrary_truncation": True})
    return recipe.model_copy(
        update={
            "merge_method": candidate.method,
            "space": candidate.space,
            "parameters": {**_weight(recipe.parameters), **candidate.parameters},
            "adapters": tuple(entry.model_copy(update={"parameters": _weight(entry.parameters)}) for entry in recipe.adapters),
            "overrides": tuple(
                override.model_copy(update={"merge_method": None, "space": None, "parameters": _weight(override.parameters)})
                for override in recipe.overrides
            ),
            "output": output,
        }
    )


def _weight(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name == "weight"}


def labels(candidates: Sequence[Candidate], own: str) -> list[str]:
    """Distinct names of the recipe's own method and of the candidates."""
    asked = [candidate.label for candidate in candidates]
    return [f"{own} (recipe)" if own in asked else own, *asked]

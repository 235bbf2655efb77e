"""Checks of the names and parameters of methods, spaces and steps against what these say of themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import RmkitError
from .problems import Problems, nearest, show
from .schema import SPACE_OPTIONS
from .values import method_named
from .yaml_text import Path

if TYPE_CHECKING:
    from ..method import Method

WEIGHT = "weight"
"""The one parameter every method has: the coefficient of an adapter."""


def check_parameters(data: Any, problems: Problems) -> None:
    """Note every unknown method or step, unknown or misplaced parameter, value out of range and missing parameter.

    `data` may be wrong in any way: what does not have the shape of a recipe is passed over, for the schema reports it.
    """
    if not isinstance(data, Mapping):
        return
    _check_spaces(data, problems)
    _check_steps(data, problems)
    main = _method(data, ("merge_method",), problems)
    overrides = [(("overrides", i), each) for i, each in _items(data.get("overrides")) if isinstance(each, Mapping)]
    others = [(path, each, _method(each, (*path, "merge_method"), problems)) for path, each in overrides]
    methods = [main, *(main if "merge_method" not in each else method for _, each, method in others)]
    for (path, each, _), method in zip(others, methods[1:], strict=True):
        if method is not None:
            _check_values(_mapping(each.get("parameters")), (*path, "parameters"), [method], problems)
    used = [method for method in methods if method is not None]
    if main is None or len(used) < len(methods):
        return
    entries = [(i, entry) for i, entry in _items(data.get("adapters")) if isinstance(entry, Mapping)]
    _check_values(_mapping(data.get("parameters")), ("parameters",), used, problems)
    for i, entry in entries:
        _check_entry(_mapping(entry.get("parameters")), ("adapters", i, "parameters"), used, problems)
    places: list[tuple[Path, Any]] = [(("merge_method",), {}), *((path, each) for path, each, _ in others)]
    everyone = [entry.get("parameters") for _, entry in entries] if len(entries) == len(_items(data.get("adapters"))) else []
    for (path, each), method in zip(places, used, strict=True):
        given = {**_mapping(data.get("parameters")), **_mapping(each.get("parameters"))}
        _check_whole(method, given, [_mapping(each) for each in everyone], path, problems)
    _check_count(main, data.get("adapters"), problems)


def _check_entry(given: Mapping[str, Any], path: Path, used: list[Method], problems: Problems) -> None:
    """An adapter may set its weight and what a method takes per adapter, nothing else."""
    rest = dict(given)
    for name in given:
        knowing = [method for method in used if name in method.params.model_fields]
        if name != WEIGHT and knowing and not any(name in method.params.per_adapter for method in knowing):
            hint = "move it under the recipe's parameters"
            typed = problems.source((*path, name))[-1]
            problems.add((*path, name), f"{typed} applies to the merge as a whole", hint=hint, at_key=True)
            del rest[name]
    _check_values(rest, path, used, problems)


def _method(data: Mapping[str, Any], path: Path, problems: Problems) -> Method | None:
    name = data.get("merge_method")
    if not isinstance(name, str) or not name:
        return None
    try:
        return method_named(name)
    except RmkitError as error:
        problems.add_error(path, error)
        return None


def _check_values(given: Mapping[str, Any], path: Path, methods: list[Method], problems: Problems) -> None:
    """Names must be known to one of the methods, and every scalar must be what one of the methods that know it takes."""
    for name, value in given.items():
        knowing = [method for method in methods if name in method.params.model_fields]
        if name == WEIGHT:
            checkers = [_number()]
        elif knowing:
            checkers = [field_adapter(method.params, name) for method in knowing]
        else:
            named = list(dict.fromkeys(method.name for method in methods))
            known = dict.fromkeys(key for method in methods for key in (*method.params.model_fields, WEIGHT))
            alone = len(named) == 1
            what = f"{named[0]} has no parameter {name!r}" if alone else f"none of {', '.join(named)} has a parameter {name!r}"
            problems.add((*path, name), what, hint=nearest(name, known), at_key=True)
            continue
        _check_value(value, (*path, name), checkers, problems)


def _check_value(value: Any, path: Path, checkers: list[TypeAdapter[Any]], problems: Problems) -> None:
    numbers = isinstance(value, list) and all(_is_number(item) for item in value)
    if numbers and not any(_interpolates(checker) for checker in checkers):
        name = problems.spell(path)
        problems.add(
            path,
            f"{name} takes one value, got a gradient {show(value)}",
            hint="only numbers with fractions take a gradient; use a filter list, or overrides",
        )
        return
    for place, scalar in _scalars(value, path):
        if isinstance(scalar, float) and not math.isfinite(scalar):
            continue
        failures = [failure for checker in checkers if (failure := _failure(checker, scalar)) is not None]
        if len(failures) == len(checkers):
            problems.add_invalid(failures[-1], scalar, BaseModel, place)


def _scalars(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every scalar inside a value, with its place; what is not a value is the schema's business."""
    if isinstance(value, bool | int | float | str):
        yield path, value
    for i, item in _items(value):
        if _is_number(item):
            yield (*path, i), item
        elif isinstance(item, Mapping):
            inner = item.get("value")
            if not (isinstance(inner, list) and any(isinstance(each, Mapping) for each in inner)):
                yield from _scalars(inner, (*path, i, "value"))


def _check_whole(
    method: Method, given: Mapping[str, Any], entries: list[Mapping[str, Any]], path: Path, problems: Problems
) -> None:
    """Required parameters are given; parameters that do not depend on the site fit together."""
    fields = method.params.model_fields
    missing = [
        name
        for name, field in fields.items()
        if field.is_required() and name not in given and not (entries and all(name in entry for entry in entries))
    ]
    for name in missing:
        problems.add(path, f"{method.name} needs the parameter {name}", hint=f"add it under parameters: {{{name}: ..}}")
    known = {name: value for name, value in given.items() if name in fields}
    constant = all(isinstance(value, bool | int | float | str) for value in known.values())
    if missing or not constant or any(_failure(field_adapter(method.params, name), known[name]) for name in known):
        return
    try:
        method.params(**known)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            if found["type"] in ("value_error", "assertion_error"):
                problems.add(path, f"{method.name}: {found['ctx']['error']}" if "ctx" in found else method.name)


def _check_count(method: Method, adapters: Any, problems: Problems) -> None:
    least, most = method.adapters
    if not isinstance(adapters, list) or not adapters:
        return
    if len(adapters) < least or (most is not None and len(adapters) > most):
        wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        problems.add(("adapters",), f"{method.name} merges {wanted} adapters, got {len(adapters)}", at_key=True)


def _check_spaces(data: Mapping[str, Any], problems: Problems) -> None:
    places: list[tuple[Path, Any]] = [(("space",), data.get("space"))]
    places += [
        (("overrides", i, "space"), each.get("space")) for i, each in _items(data.get("overrides")) if isinstance(each, dict)
    ]
    for path, choice in places:
        for name, options in _mapping(choice).items():
            if name in SPACE_OPTIONS and isinstance(options, dict):
                try:
                    SPACE_OPTIONS[name].model_validate(options)
                except ValidationError as error:
                    problems.add_invalid(error, options, SPACE_OPTIONS[name], (*path, name))


def _check_steps(data: Mapping[str, Any], problems: Problems) -> None:
    from ..transforms import find_post, find_pre

    for key, find in (("pre", find_pre), ("post", find_post)):
        for i, step in _items(data.get(key)):
            options: Any = {}
            path: Path = (key, i)
            name = step
            if isinstance(step, dict) and len(step) == 1:
                name, options = next(iter(step.items()))
                path = (key, i, name)
            if not isinstance(name, str) or not isinstance(options, dict):
                continue
            try:
                params = find(name).params
            except RmkitError as error:
                problems.add_error((key, i), error)
                continue
            try:
                params.model_validate(options, strict=True)
            except ValidationError as error:
                problems.add_invalid(error, options, params, path)


@lru_cache(maxsize=1024)
def field_adapter(params: type[BaseModel], name: str) -> TypeAdapter[Any]:
    """The check of one field of a method's settings, ranges included."""
    field = params.model_fields[name]
    checked: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(checked)


@lru_cache(maxsize=1)
def _number() -> TypeAdapter[Any]:
    return TypeAdapter(float)


def _failure(checker: TypeAdapter[Any], scalar: Any) -> ValidationError | None:
    """Why a scalar is not what a field takes: no text for numbers, no booleans for numbers."""
    try:
        checker.validate_python(scalar, strict=True)
    except ValidationError as error:
        return error
    return None


def _interpolates(checker: TypeAdapter[Any]) -> bool:
    """Whether a field takes fractions, whatever its range."""
    failure = _failure(checker, 0.5)
    return failure is None or any(found["type"].startswith(("greater_than", "less_than")) for found in failure.errors())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[tuple[int, Any]]:
    return list(enumerate(value)) if isinstance(value, list) else []

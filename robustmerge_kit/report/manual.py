"""The merge methods for readers: facts read off the method records, tables of parameters, manual pages."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from ..errors import RecipeError
from ..method import Elementwise, Method, Params
from ..methods import BUILTIN, find, names
from ..methods.mergekit_dense import NAMES as OF_MERGEKIT
from ..transforms import POST, PRE, Post, Pre

WIDTH = 120
_NOT_LOADED = "plugin"
_ARXIV = re.compile(r"(?:https://arxiv\.org/abs/)?(\d{4}\.\d{5})")


@dataclass(frozen=True)
class Parameter:
    """One setting as a user types it. `range` and `default` are text; `per_adapter`: adapter entries may set it too."""

    name: str
    type: str
    range: str
    default: str
    per_adapter: bool


@dataclass(frozen=True)
class Facts:
    """What a method's record says, in words. All but name, kind, paper and spaces are None for what is not loaded yet.

    rank: of the result with `output.rank: auto`. adapters: least and largest number. random, split_dependent: when.
    """

    name: str
    kind: str
    paper: str
    spaces: tuple[str, ...]
    rank: str | None = None
    adapters: tuple[int, int | None] | None = None
    equal_ranks: bool | None = None
    data: str = "none"
    random: str | None = None
    split_dependent: str | None = None
    flat_spectrum: bool | None = None
    settings: tuple[str, ...] | None = None

    @property
    def needs(self) -> str:
        """What the inputs must be, a dash for nothing."""
        if self.adapters is None:
            return "?"
        least, most = self.adapters
        number = f"{least} adapters" if least == most else f"{least}+ adapters" if least > 1 else ""
        return ", ".join(part for part in (number, "equal ranks" if self.equal_ranks else "") if part) or "-"


def every_method() -> list[Facts]:
    """Facts of all methods; neither mergekit nor a plugin is imported for it."""
    known = {method.name: method for method in BUILTIN}
    return [facts(known[name]) if name in known else _unloaded(name) for name in names()]


def facts(method: Method) -> Facts:
    """What a method's record says."""
    return Facts(
        name=method.name,
        kind=method.kind,
        paper=arxiv(method.paper) or method.paper,
        spaces=method.spaces,
        rank=_rank(method),
        adapters=method.adapters,
        equal_ranks=method.equal_ranks,
        random=_random(method),
        split_dependent=_split_dependent(method),
        flat_spectrum=method.flat_spectrum,
        settings=tuple(method.params.model_fields),
    )


def document(name: str) -> dict[str, Any]:
    """Facts, parameters and manual page of a method or a step, as JSON takes it.

    Raises: as `page`.
    """
    found = _look_up(name)
    if isinstance(found, Method):
        known, page_of = asdict(facts(found)), found.merge  # pyright: ignore[reportAttributeAccessIssue]
    else:
        known = {"name": found.name, "kind": "pre step" if isinstance(found, Pre) else "post step", "paper": found.paper}
        page_of = found.apply
    listed = [asdict(each) for each in parameters(found.params)]
    return {**known, "parameters": listed, "page": docstring(page_of), "schema": found.params.model_json_schema()}


def listing() -> list[str]:
    """All methods as a table of at most 120 columns, and the steps around them."""
    head = ("name", "kind", "paper", "spaces", "output rank", "needs", "data")
    rows = [
        (each.name, each.kind, each.paper, " ".join(each.spaces) or "-", each.rank or "?", each.needs, each.data)
        for each in every_method()
    ]
    # of a rank that depends on parameters the first word says what the defaults give
    short = [(*row[:4], row[4].split(",")[0], *row[5:]) for row in rows]
    steps = (f"{key} steps: {', '.join(step.name for step in each)}" for key, each in (("pre", PRE), ("post", POST)))
    return [*_table(head, short), "", *steps, "`rmkit methods NAME` prints the page of a method or step."]


def page(name: str) -> list[str]:
    """The manual page of a method or a step: a header, its parameters, the docstring of its module.

    Raises: RecipeError for an unknown name, PluginError for a plugin that cannot be loaded.
    """
    found = _look_up(name)
    text = docstring(found.merge if isinstance(found, Method) else found.apply)  # pyright: ignore[reportAttributeAccessIssue]
    weight = [("weight", "number", "-", "1.0", "yes")] if isinstance(found, Method) else []
    rows = [(p.name, p.type, p.range, p.default, "yes" if p.per_adapter else "") for p in parameters(found.params)]
    table = _table(("parameter", "type", "range", "default", "per adapter"), [*rows, *weight])
    return [*header(found), "", *(table if len(table) > 1 else ["no parameters"]), "", *text.splitlines()]


def _look_up(name: str) -> Method | Pre | Post:
    steps = {step.name: step for step in (*PRE, *POST)}
    if name in steps:
        return steps[name]
    try:
        return find(name)
    except RecipeError as error:
        near = difflib.get_close_matches(name, steps, n=1)
        raise RecipeError(error.what, hint=f"did you mean the step {near[0]}?" if near else error.hint) from error


def header(method: Method | Pre | Post) -> list[str]:
    """Name, kind and paper in the first line, what the record says after it."""
    if not isinstance(method, Method):
        when = "pre step, before the method" if isinstance(method, Pre) else "post step, after the method"
        return [f"{method.name}: {when}; {_cited(method.paper)}"]
    known = facts(method)
    least, most = method.adapters
    number = f"exactly {least}" if least == most else f"at least {least}" if least > 1 else "any number"
    said = [
        f"spaces: {', '.join(known.spaces) or 'none'}",
        f"output rank: {known.rank}",
        f"adapters: {number}, of {'equal' if known.equal_ranks else 'any'} rank",
        f"random: {known.random}",
        f"depends on the split into B and A: {known.split_dependent}",
        f"data: {known.data}",
    ]
    return [f"{known.name}: {known.kind} method; {_cited(known.paper)}", *_wrapped(said)]


def parameters(params: type[BaseModel]) -> list[Parameter]:
    """The settings of a method or step, from its pydantic model."""
    schema = params.model_json_schema(by_alias=True)
    required = schema.get("required", ())
    each = getattr(params, "per_adapter", ())
    return [
        Parameter(name, _type(field), _range(field), _default(field, name in required), name in each)
        for name, field in schema.get("properties", {}).items()
    ]


def docstring(function: Any) -> str:
    """The docstring of the module a function is defined in: the manual page of what it implements."""
    return inspect.getdoc(inspect.getmodule(function)) or "It has no manual page."


def arxiv(paper: str) -> str | None:
    """The arXiv id a paper is cited by, None where it is not on arXiv."""
    found = _ARXIV.fullmatch(paper)
    return found[1] if found else None


def _unloaded(name: str) -> Facts:
    if name in OF_MERGEKIT:
        return Facts(name, Elementwise.kind, "mergekit 0.1.5", ("full",), rank="sum")
    return Facts(name, _NOT_LOADED, "?", ())


def _cited(paper: str) -> str:
    return f"https://arxiv.org/abs/{paper}" if arxiv(paper) else paper


# --- what depends on parameters ----------------------------------------------------------------------------------------

_RANKS = (2, 3, 7)


def _rank(method: Method) -> str:
    """The rank with default parameters, then the parameters that change it."""
    if "full" in method.spaces:
        return "by space" if len(method.spaces) > 1 else "sum"
    if method.output_rank != "any":
        return "required" if method.output_rank == "required" else "sum only"
    usual = method.rank(_RANKS, _example(method.params))
    words = {sum(_RANKS): "sum", max(_RANKS): "max"}
    changes: list[str] = []
    for setting, value, params in _variations(method.params):
        rank = method.rank(_RANKS, params)
        if rank != usual:
            changes.append(f"{words[rank]} with {setting}: {value}" if isinstance(value, str) else f"or as {setting} says")
    return ", ".join([words[usual], *changes])


def _random(method: Method) -> str:
    if method.random(_example(method.params)):
        return "yes"
    when = [f"{setting}: {value}" for setting, value, params in _variations(method.params) if method.random(params)]
    return f"with {', '.join(when)}" if when else "no"


def _split_dependent(method: Method) -> str:
    if isinstance(method, Elementwise) and "factor" in method.spaces:
        return "in the spaces factor and core (basis: factors)"
    return "yes" if method.split_dependent else "no"


def _example(params: type[Params], **given: Any) -> Any:
    """Settings with 0.5 wherever a number is required."""
    required = {name: 0.5 for name, field in params.model_fields.items() if field.is_required()}
    return params(**{**required, **given})


def _variations(params: type[Params]) -> Iterator[tuple[str, str | int, Any]]:
    """The settings with one word or whole number other than its default, that number a small one."""
    for name, field in params.model_json_schema().get("properties", {}).items():
        for member in field.get("anyOf", [field]):
            values = member.get("enum", []) if member.get("type") == "string" else [2] * (member.get("type") == "integer")
            for value in values:
                if value != field.get("default"):
                    yield name, value, _example(params, **{name: value})


# --- the JSON schema of a field in words -------------------------------------------------------------------------------

_TYPES = {"number": "number", "integer": "whole number", "boolean": "true or false", "string": "text"}


def _members(field: dict[str, Any]) -> list[dict[str, Any]]:
    """What a recipe may give as one value: neither nothing nor the tuple that adapters' own values become."""
    return [member for member in field.get("anyOf", [field]) if member.get("type") not in ("null", "array")]


def _type(field: dict[str, Any]) -> str:
    kinds: list[str] = []
    for member in _members(field):
        kinds.extend(member.get("enum") or ([member["const"]] if "const" in member else [_TYPES[member["type"]]]))
    return " | ".join(kinds)


def _range(field: dict[str, Any]) -> str:
    for member in _members(field):
        low, above = member.get("minimum"), member.get("exclusiveMinimum")
        high, below = member.get("maximum"), member.get("exclusiveMaximum")
        bottom = f"[{low:g}" if low is not None else f"({above:g}" if above is not None else None
        top = f"{high:g}]" if high is not None else f"{below:g})" if below is not None else None
        if bottom and top:
            return f"{bottom}, {top}"
        if bottom:
            return f">= {low:g}" if low is not None else f"> {above:g}"
        if top:
            return f"<= {high:g}" if high is not None else f"< {below:g}"
    return "-"


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = field.get("default")
    if value is None:
        return "see text"
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


# --- text --------------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]


def _wrapped(said: Sequence[str]) -> list[str]:
    """Sentences one after the other, none of them broken."""
    lines: list[str] = []
    for each in said:
        if lines and len(lines[-1]) + len(each) + 2 <= WIDTH:
            lines[-1] += f"; {each}"
        else:
            lines.append(each)
    return lines

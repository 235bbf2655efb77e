"""Which spaces and transforms a method may be combined with; a combination without a meaning is an error that says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PlanError
from ..method import Method, Params
from ..recipe import SpaceChoice, Step


def resolve_space(choice: SpaceChoice | None, method: Method, site: str) -> tuple[str, Mapping[str, Any]] | None:
    """The space's name and options, None where the method's kind has no spaces.

    Raises: PlanError when the method cannot run there.
    """
    if choice is None:
        return ("full", {}) if method.kind == "elementwise" else None
    name, options = (choice, {}) if isinstance(choice, str) else next(iter(choice.items()))
    raise PlanError(
        f"{method.name} is a {method.kind} method and has no space {name!r}", where=f"site {site}", hint="remove `space`"
    )


def resolve_pre(steps: Sequence[Step], method: Method) -> tuple[tuple[str, Params], ...]:
    """The pre steps by name with their parameters."""
    return ()


def resolve_post(steps: Sequence[Step], method: Method) -> tuple[tuple[str, Params], ...]:
    """The post steps by name with their parameters."""
    return ()

"""Which spaces and transforms a method may be combined with; a combination without a meaning is an error that says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import PlanError, RecipeError
from ..method import Method, Params
from ..recipe import SpaceChoice, Step
from ..spaces import OPTIONS
from ..transforms import Post, Pre, find_post, find_pre
from ..transforms import Step as Transform

AnyTransform = TypeVar("AnyTransform", bound=Transform)

MOST_DENSE = 1 << 35
"""Values of the largest delta that is written out; the largest real ones, embeddings, have an eighth of it."""

_NO_SPACE = {
    "coefficient": "combines whole deltas by their inner products, which are the same in every space",
    "equivariant": "runs on the singular structure, which is the same in every space",
    "factor": "works on A and B themselves",
    "elementwise": "brings its own space",
}


def resolve_space(choice: SpaceChoice | None, method: Method, site: str) -> tuple[str, BaseModel] | None:
    """The space's name and options, None where the method's kind has no spaces.

    Raises: PlanError when the method cannot run there.
    """
    if choice is None:
        return ("full", OPTIONS["full"]()) if "full" in method.spaces else None
    name, options = (choice, {}) if isinstance(choice, str) else next(iter(choice.items()))
    if name in method.spaces:
        try:
            return name, OPTIONS[name](**options)
        except ValidationError as error:
            raise _explain(error, f"space {name}", list(OPTIONS[name].model_fields), "space") from error
    if method.spaces:
        what = f"{method.name} runs in {', '.join(method.spaces)}, not in space {name!r}"
    else:
        what = f"{method.name} has no space {name!r}: it {_NO_SPACE[method.kind]}"
    raise PlanError(what, where=f"site {site}", hint="remove `space`, or choose another method; see `rmkit methods`")


def check_dense(site: str, d_out: int, d_in: int) -> None:
    """Refuse to write out a delta that would take days: factors of a few megabytes can declare one.

    Raises: PlanError.
    """
    if d_out * d_in > MOST_DENSE:
        raise PlanError(
            f"[{d_out}, {d_in}] has {d_out * d_in} values, too many to write out in space full",
            where=f"site {site}",
            hint="choose space: core, which never writes them out",
        )


def resolve_pre(steps: Sequence[Step]) -> tuple[tuple[Pre, Params], ...]:
    """The pre steps of a recipe with their parameters.

    Raises: RecipeError for an unknown step or wrong parameters.
    """
    return tuple(_resolve(step, find_pre, f"pre[{index}]") for index, step in enumerate(steps))


def resolve_post(steps: Sequence[Step]) -> tuple[tuple[Post, Params], ...]:
    """The post steps of a recipe with their parameters.

    Raises: RecipeError for an unknown step or wrong parameters.
    """
    return tuple(_resolve(step, find_post, f"post[{index}]") for index, step in enumerate(steps))


def _resolve(step: Step, find: Callable[[str], AnyTransform], where: str) -> tuple[AnyTransform, Params]:
    name, options = (step, {}) if isinstance(step, str) else next(iter(step.items()))
    found = find(name)
    try:
        return found, found.params(**options)
    except ValidationError as error:
        raise _explain(error, name, list(found.params.model_fields), where) from error


def _explain(error: ValidationError, name: str, fields: Sequence[str], where: str) -> RecipeError:
    problem = error.errors(include_url=False)[0]
    field = ".".join(map(str, problem["loc"]))
    known = f"its parameters are {', '.join(fields)}" if fields else "it has no parameters"
    return RecipeError(f"{name}: {field}: {problem['msg']}", where=where, hint=known)

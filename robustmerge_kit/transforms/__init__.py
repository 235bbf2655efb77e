"""Steps around the merge by name: PRE acts on the adapters, POST on the merged delta, in the order the recipe gives."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeVar

from ..errors import RecipeError
from . import canonicalize, norms, pico, subspace_boost, svc
from .step import Post, Pre, Step

PRE: tuple[Pre, ...] = (norms.NORM_BALANCE, norms.NORM_CAP, pico.PICO, canonicalize.CANONICALIZE)
POST: tuple[Post, ...] = (svc.SVC, subspace_boost.SUBSPACE_BOOST, norms.RESCALE_OUTPUT)

AnyStep = TypeVar("AnyStep", bound=Step)


def find_pre(name: str) -> Pre:
    """The pre step of that name.

    Raises: RecipeError for an unknown name.
    """
    return _find(name, PRE, "pre", POST)


def find_post(name: str) -> Post:
    """The post step of that name.

    Raises: RecipeError for an unknown name.
    """
    return _find(name, POST, "post", PRE)


def _find(name: str, steps: Sequence[AnyStep], key: str, others: Sequence[Step]) -> AnyStep:
    for step in steps:
        if step.name == name:
            return step
    if any(step.name == name for step in others):
        raise RecipeError(f"{name!r} is not a {key} step", hint=f"move it to `{'post' if key == 'pre' else 'pre'}:`")
    names = [step.name for step in steps]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"{key} steps are {', '.join(names)}"
    raise RecipeError(f"no {key} step is called {name!r}", hint=hint)

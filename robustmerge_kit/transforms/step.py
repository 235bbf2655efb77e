"""The contract of a step before or after the merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from ..factors import Core, FactorStack, Spectral
from ..method import Params


@dataclass(frozen=True, kw_only=True)
class Step:
    """What every step says of itself. `params` is its own class of settings."""

    name: str
    paper: str
    params: type[Params]


@dataclass(frozen=True, kw_only=True)
class Pre(Step):
    """Changes the adapters before the method sees them.

    apply(stack, params) -> stack with the same sites, widths, ranks and weights.
    restore: (merged delta, norms (..., n) of the weighted deltas before `apply`) -> merged delta; run right after the
    method, before the recipe's post steps. None where nothing is to be restored.
    split_dependent: the result depends on how B A is split into factors.
    """

    apply: Callable[[FactorStack, Any], FactorStack]
    restore: Callable[[Spectral, Float[torch.Tensor, "*batch n"]], Spectral] | None = None
    split_dependent: bool = False


@dataclass(frozen=True, kw_only=True)
class Post(Step):
    """Changes the singular values of the merged delta; its directions stay.

    apply(delta, core, params) -> delta, where `core` holds the adapters as they are after the pre steps.
    flat_spectrum: the values may come out all alike, so that cutting the rank keeps arbitrary directions.
    """

    apply: Callable[[Spectral, Core, Any], Spectral]
    flat_spectrum: bool = False

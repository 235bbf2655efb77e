"""What the factors of an adapter look like by themselves: the distribution of their values, and spectra after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float

from ...factors import FactorStack
from ...method import Draws, Params
from ...methods.robustmerge import RobustMerge, merge_robust
from ..numbers import measure
from .records import FactorValues

BINS = 64
REACH = 4.0
"""Histograms run from -REACH to REACH times the rms; what lies beyond is counted in the outermost bins."""

EDGES = tuple(REACH * (2 * i / BINS - 1) for i in range(BINS + 1))


Spectrum = tuple[float, ...]
"""Singular values, descending."""


class Values(NamedTuple):
    """The values of a factor: their moments, and how many fall into each bin.

    Shapes: counts (BINS,) float64.
    """

    facts: FactorValues
    counts: torch.Tensor


def look_at(x: Float[torch.Tensor, "rows cols"]) -> Values:
    """The distribution of a factor's values in units of their root mean square; a factor of zeros has no shape."""
    values = x.detach().float()
    squares = values.square()
    power = _mean(squares)
    if power == 0:
        return Values(FactorValues(rms=0.0, largest=None, kurtosis=None), torch.zeros(BINS, dtype=torch.float64))
    rms = power**0.5
    largest = float(squares.max()) ** 0.5 / rms
    # Squares are divided first: fourth powers of small float32 numbers would underflow.
    kurtosis = _mean((squares / power).square_()) - 3.0
    counts = torch.histc((values / rms).clamp_(-REACH, REACH), BINS, -REACH, REACH)
    return Values(FactorValues(rms=rms, largest=largest, kurtosis=kurtosis), counts.double().cpu())


def _mean(x: Float[torch.Tensor, "rows cols"]) -> float:
    """The mean of all entries, rows first: float64 is only needed for many terms, and slow."""
    return float(x.mean(-1).mean(dtype=torch.float64))


def pruning(params: Params | None) -> RobustMerge:
    """The settings with which spectra after pruning are made: those of a RobustMerge step, else its defaults."""
    given = params if isinstance(params, RobustMerge) else RobustMerge()
    # One adapter by itself: what the others do to it, normalisation and gain, is left out.
    return given.model_copy(update={"variant": "paper", "gain": 1.0, "normalize": False})


def pruned_spectra(stack: FactorStack, params: RobustMerge, draws: Draws) -> tuple[list[Spectrum], list[Spectrum]]:
    """Singular values of every update after RobustMerge's pruning, and after its complementary scales too.

    B~_t A~_t and B~_t diag(S_t) A~_t, in the order of the stack.
    Source: arXiv 2502.17159, Eq. 2 and 3.
    """
    plain = params.model_copy(update={"scaling": "none"})
    return _spectra(stack, plain, draws), _spectra(stack, params, draws)


def _spectra(stack: FactorStack, params: RobustMerge, draws: Draws) -> list[Spectrum]:
    merged = merge_robust(stack, params, draws)
    ranks: Sequence[int] = stack.ranks
    found: list[Spectrum] = []
    for b, a in zip(merged.b.split(list(ranks), -1), merged.a.split(list(ranks), -2), strict=True):
        numbers = measure(a.cpu(), b.cpu(), 1.0)
        found.append(numbers.singular_values if numbers else ())
    return found

"""Model Stock: shrink the mean of the deltas by how little they agree.

Paper: arXiv 2403.19522. The base of a delta is 0.

    c = mean over pairs of cos(D_i, D_j)
    t = n c / (1 + (n-1) c)                            0 where the denominator is below 1e-6 in magnitude
    D = t/n sum_t D_t

Parameters: `filter_wise` (false): true gives every output row its own t, from the inner products of that row.
Edge cases: at least two adapters. A pair with a zero delta (or row) has cos 0, and zero deltas count in n. Negative
agreement gives a negative t.
Differs: mergekit clamps products of norms at the absolute 1e-6, which is wrong for deltas shorter than about 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float

from ..factors import Weights, ratio
from ..method import Coefficient, Params


class ModelStock(Params):
    """Settings of model_stock."""

    filter_wise: bool = False


def merge(gram: Float[torch.Tensor, "*batch n n"], weights: Weights, params: ModelStock) -> Float[torch.Tensor, "*batch n"]:
    """t/n for every delta; with `filter_wise` the rows of the site are a batch axis of `gram`.

    Shapes: gram (..., n, n); result (..., n).
    Source: arXiv 2403.19522, section 4.
    """
    n = weights.count
    if n == 1:
        return torch.ones_like(gram[..., 0])
    length = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    cosines = ratio(gram, length[..., :, None] * length[..., None, :])
    mean = cosines.triu(1).sum((-2, -1)) / (n * (n - 1) / 2)
    below = 1 + (n - 1) * mean
    t = torch.where(below.abs() < 1e-6, 0.0, n * ratio(mean, below))
    return (t / n)[..., None].expand_as(length)


def refuse_single(params: ModelStock, weights: Sequence[float]) -> str | None:
    """Why fewer than two adapters with weight cannot be compared, or None."""
    if sum(w != 0 for w in weights) < 2:
        return f"model_stock compares adapters and needs two with a weight, got {', '.join(f'{w:g}' for w in weights)}"
    return None


METHODS = (
    Coefficient(
        name="model_stock",
        paper="2403.19522",
        params=ModelStock,
        merge=merge,
        check=refuse_single,
        adapters=(2, None),
        rowwise=lambda params: params.filter_wise,
    ),
)

"""Weighted sums of the deltas: linear, task_arithmetic, cat, svd.

    linear            D = gain * sum_t D_t / sum_t w_t          D_t = w_t s_t B_t A_t
    task_arithmetic   D = gain * sum_t D_t                      `normalize: true` divides by sum_t w_t
    cat               task_arithmetic, kept at full rank R = sum r_t: no information is lost
    svd               task_arithmetic, cut to `output.rank` by the best low-rank approximation

The sum is exact: B' = [c_1 B_1 | .. | c_n B_n], A' = [A_1; ..; A_n]. An adapter whose delta is zero counts in sum_t w_t.

Parameters: `normalize` (linear: true, others: false), `gain` 1.
Differs: mergekit divides by zero, or skips the division, when the weights cancel; here that is an error. PEFT's `linear` mixes
A and B of different adapters and is another operator (`peft_linear`); its `cat` and `svd` agree with ours except for rsLoRA
inputs, which PEFT scales by sqrt(r) too much.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float

from ..factors import Weights
from ..method import Coefficient, Params


class Sum(Params):
    """Settings of task_arithmetic, cat and svd."""

    normalize: bool = False
    gain: float = 1.0


class Mean(Params):
    """Settings of linear."""

    normalize: bool = True
    gain: float = 1.0


def merge_sum(gram: Float[torch.Tensor, "*batch n n"], weights: Weights, params: Sum | Mean) -> Float[torch.Tensor, "*batch n"]:
    """c'_t = gain, or gain / sum_u w_u with `normalize`.

    Shapes: gram (..., n, n), read only for its shape; result (..., n).
    Source: arXiv 2203.05482 (linear), arXiv 2212.04089 (task_arithmetic).
    """
    factor = params.gain / weights.total if params.normalize else params.gain
    return torch.full_like(gram[..., 0], factor)


def refuse_cancelling(params: Sum | Mean, weights: Sequence[float]) -> str | None:
    """Why weights that cancel cannot be normalised, or None."""
    if params.normalize and abs(sum(weights)) < 1e-8 * sum(map(abs, weights)):
        return f"the weights {', '.join(f'{w:g}' for w in weights)} sum to zero and cannot be normalised; set normalize: false"
    return None


LINEAR = Coefficient(
    name="linear",
    paper="2203.05482",
    params=Mean,
    merge=merge_sum,
    check=refuse_cancelling,
    needs_gram=False,
    spaces=("ctm",),
)
TASK_ARITHMETIC = Coefficient(
    name="task_arithmetic",
    paper="2212.04089",
    params=Sum,
    merge=merge_sum,
    check=refuse_cancelling,
    needs_gram=False,
    spaces=("ctm",),
)
CAT = Coefficient(
    name="cat", paper="PEFT", params=Sum, merge=merge_sum, check=refuse_cancelling, needs_gram=False, output_rank="sum"
)
SVD = Coefficient(
    name="svd", paper="PEFT", params=Sum, merge=merge_sum, check=refuse_cancelling, needs_gram=False, output_rank="required"
)
METHODS = (LINEAR, TASK_ARITHMETIC, CAT, SVD)

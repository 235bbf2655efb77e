"""canonicalize (pre): make the result of methods that look at A and B a function of the deltas alone.

    mode balanced   each adapter is scaled to ||A_t||_F = ||c_t B_t||_F: removes the dependence on a scalar c, 1/c
    mode svd        c_t B_t = U sqrt(S), A_t = sqrt(S) V^T of D_t = U S V^T; the largest entry of every column of U is positive
    mode none       unchanged (default)

Neither is what any paper does. Adapters that share a factor go on sharing it: scales are kept beside the factors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from ..factors import FactorStack, LowRank, decompose
from ..method import Params
from .step import Pre


class Canonicalize(Params):
    """Settings of canonicalize."""

    mode: Literal["none", "balanced", "svd"] = "none"


def canonicalize(stack: FactorStack, params: Canonicalize) -> FactorStack:
    """The same deltas with factors that do not depend on how each of them was split.

    Of a float32 stack A comes back in float64, so that scaling it rounds nothing.
    """
    if params.mode == "none":
        return stack
    split = _balanced if params.mode == "balanced" else _singular
    each = [split(stack.b[t], stack.a[t], c) for t, c in enumerate(stack.coefficients)]
    b, a, coefficients = zip(*each, strict=True)
    return replace(
        stack,
        a=tuple(a),
        b=tuple(x.to(stack.dtype) for x in b),
        coefficients=tuple(coefficients) if stack.batch else tuple(float(c) for c in coefficients),
    )


def _balanced(b: torch.Tensor, a: torch.Tensor, c: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size_a, size_b = (torch.linalg.matrix_norm(x.double()) for x in (a, b))
    known = torch.as_tensor(c, dtype=torch.float64, device=b.device)
    lengthen = (known.abs() * size_b / torch.where(size_a > 0, size_a, 1.0)).sqrt()
    lengthen = torch.where((size_a > 0) & (lengthen > 0), lengthen, 1.0)
    return b, a.double() * lengthen[..., None, None], known / lengthen


def _singular(b: torch.Tensor, a: torch.Tensor, c: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    cut = decompose(LowRank(b.double(), a.double())).cut(a.shape[-2])
    known = torch.as_tensor(c, dtype=torch.float64, device=b.device)
    root = known.abs().sqrt()
    return cut.b, cut.a * (known.sign() * root)[..., None, None], root.expand(a.shape[:-2])


CANONICALIZE = Pre(name="canonicalize", paper="rmkit", params=Canonicalize, apply=canonicalize)

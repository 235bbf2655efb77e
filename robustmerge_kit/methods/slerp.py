"""Spherical interpolation: slerp and nuslerp of two adapters, multislerp of any number.

Directions and lengths of the deltas as whole vectors, not of A and B apart; cos is taken from the Gram matrix.

    slerp       theta = angle between D_1 and D_2, both weighted
                D = [sin((1-t) theta) D_1 + sin(t theta) D_2] / sin theta
                (1-t) D_1 + t D_2 where |cos theta| > 0.9995; theta = 90 degrees where one of them is zero
    nuslerp     the same on deltas without their weights, t = w_2 / (w_1 + w_2), 0.5 if the sum is 0;
                straight only where 1 - cos^2 <= 1e-16
    multislerp  a_t = w_t / sum w, e_t = direction of the delta without its weight, mu = sum a_t e_t / ||.||
                D = (sum_t a_t ||delta_t||) mu

Parameters: slerp: `t` in [0, 1], required (0: the first adapter, 1: the second); weights only scale the deltas.
nuslerp: none. multislerp: `normalize_weights` (true; false: a_t = w_t).
Edge cases: deltas whose directions cancel (||sum a_t e_t|| < 1e-8 of sum |a_t|) are combined linearly by multislerp for two
adapters and refused for more. Swapping the adapters of slerp means t -> 1 - t.
Differs: peers that interpolate flattened A and B separately compute something else. multislerp's published step along the
tangent sum a_t (e_t - <e_t, mu> mu) is left out because that tangent is zero for every input: its first part is
||sum a_t e_t|| mu, and so is its second. mergekit adds the absolute 1e-8 to norms, which shrinks small adapters, and offers
row-wise nuslerp, which we do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field

from ..errors import InputError
from ..factors import Weights, ratio
from ..method import Coefficient, Params

STRAIGHT = 0.9995
"""Above this |cos| slerp is linear."""


class Slerp(Params):
    """Settings of slerp."""

    t: Annotated[float, Field(ge=0, le=1)]


class NuSlerp(Params):
    """nuslerp has no settings."""


class MultiSlerp(Params):
    """Settings of multislerp."""

    normalize_weights: bool = True


def merge_slerp(gram: Float[torch.Tensor, "*batch n n"], weights: Weights, params: Slerp) -> Float[torch.Tensor, "*batch n"]:
    """Coefficients of the two weighted deltas on the arc between them.

    Shapes: gram (..., 2, 2), or (..., 1, 1) where the other delta is zero or the site is missing; result (..., n).
    Source: Shoemake 1985.
    """
    if weights.count == 1:
        return torch.ones_like(gram[..., 0])
    share = gram.new_tensor([(1 - params.t, params.t)[place] for place in weights.places])
    cos = _cosine(gram)
    return torch.where(cos.abs() > STRAIGHT, share, _arc(share, cos))


def merge_nuslerp(
    gram: Float[torch.Tensor, "*batch n n"], weights: Weights, params: NuSlerp
) -> Float[torch.Tensor, "*batch n"]:
    """Coefficients of the weighted deltas such that the deltas without weights are interpolated by relative weight.

    Shapes: as `merge_slerp`.
    """
    each = gram.new_tensor(weights.each)
    if weights.count == 1:
        return (1 / each).expand_as(gram[..., 0])
    share = each / weights.total if weights.total else torch.full_like(each, 0.5)
    cos = _cosine(gram) * each.sign().prod()
    return torch.where(1 - cos**2 <= 1e-16, share, _arc(share, cos)) / each


def merge_multislerp(
    gram: Float[torch.Tensor, "*batch n n"], weights: Weights, params: MultiSlerp
) -> Float[torch.Tensor, "*batch n"]:
    """Coefficients of the weighted deltas whose sum has the mean direction and the mean length.

    Shapes: gram (..., n, n); result (..., n).
    Raises: InputError when the directions of three or more adapters cancel.
    """
    each = gram.new_tensor(weights.each)
    a = each / weights.total if params.normalize_weights else each
    length = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    direction = ratio(each.sign(), length)
    mean = a * direction
    size = torch.einsum("...i,...ij,...j->...", mean, gram, mean).clamp_min(0).sqrt()[..., None]
    cancels = size < 1e-8 * (a.abs() * (length > 0)).sum(-1, keepdim=True)
    if weights.count > 2 and bool(cancels.any()):
        raise InputError("the directions of the deltas cancel, so multislerp has no mean direction", hint="change the weights")
    total = (a * length / each.abs()).sum(-1, keepdim=True)
    return torch.where(cancels, a / each, total * ratio(mean, size))


def _cosine(gram: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle between two deltas, kept as a last axis of length 1; 0 for a single one."""
    if gram.shape[-1] == 1:
        return torch.zeros_like(gram[..., 0])
    return ratio(gram[..., 0, 1], (gram[..., 0, 0] * gram[..., 1, 1]).sqrt()).clamp(-1, 1)[..., None]


def _arc(share: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    theta = cos.acos()
    sin = theta.sin()
    return ratio((share * theta).sin(), sin)


def refuse_weight_zero(params: Slerp, weights: Sequence[float]) -> str | None:
    """Why fewer than two adapters with weight cannot be interpolated, or None."""
    if sum(w != 0 for w in weights) != 2:
        return f"slerp interpolates two adapters, but the weights are {', '.join(f'{w:g}' for w in weights)}; use t instead"
    return None


def refuse_cancelling(params: MultiSlerp, weights: Sequence[float]) -> str | None:
    """Why weights that cancel cannot be normalised, or None."""
    if params.normalize_weights and abs(sum(weights)) < 1e-8 * sum(map(abs, weights)):
        return f"the weights {', '.join(f'{w:g}' for w in weights)} sum to zero; set normalize_weights: false"
    return None


SLERP = Coefficient(
    name="slerp", paper="Shoemake 1985", params=Slerp, merge=merge_slerp, adapters=(2, 2), check=refuse_weight_zero
)
NUSLERP = Coefficient(name="nuslerp", paper="mergekit", params=NuSlerp, merge=merge_nuslerp, adapters=(2, 2))
MULTISLERP = Coefficient(
    name="multislerp", paper="mergekit", params=MultiSlerp, merge=merge_multislerp, check=refuse_cancelling
)
METHODS = (SLERP, NUSLERP, MULTISLERP)

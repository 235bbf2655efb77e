"""PEFT's ways to combine adapters, for people who need the same numbers: A and B are treated apart.

    a_t A_t, b_t B_t         unfolded factors, a_t = sign(c_t) sqrt|c_t|, b_t = sqrt|c_t|, c_t = weight * scale
    peft_linear              A' = sum a_t A_t, B' = sum b_t B_t
    peft_magnitude_prune     the int(density * numel) largest entries of every A_t and B_t first, then as peft_linear
    peft_ties                prune as above; g the elected sign of the pruned, unweighted values; sum of the weighted entries
                             that agree / number of adapters that agree (at least 1), on the A stack and on the B stack
    peft_dare_linear         each entry kept with probability density and divided by it, then as peft_linear
    peft_dare_ties           the same, then as peft_ties without pruning

Parameters:
    density                required (peft_linear: none)   fraction KEPT, per adapter if wished
    majority_sign_method   total | frequency (ties)       sign of the sum, or of the sum of signs; zero elects +

The product B' A' holds all cross terms B_i A_j: even for peft_linear its error against the weighted sum of the deltas is
about 100 % for independent adapters. `linear`, `ties`, `magnitude_prune`, `dare_linear` and `dare_ties` without the prefix work
on the deltas.

Edge cases: equal ranks required. An adapter whose delta is zero still takes part, as in PEFT. Random masks are ours, not
PEFT's; equal magnitudes at the cut are taken by lower index.
Source: PEFT 0.21.2, LoraModel.add_weighted_adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float

from ..election import Density
from ..factors import FactorStack, LowRank
from ..method import Draws, Factor, Params
from ..select import largest_mask


class PeftLinear(Params):
    """peft_linear has no settings."""


class PeftSparse(Params):
    """Settings of peft_magnitude_prune and peft_dare_linear."""

    per_adapter: ClassVar[tuple[str, ...]] = ("density",)
    density: Density | tuple[Density, ...]


class PeftTies(PeftSparse):
    """Settings of peft_ties and peft_dare_ties."""

    majority_sign_method: Literal["total", "frequency"] = "total"


Combine = Callable[["torch.Tensor", "torch.Tensor", Any, Draws, str], "torch.Tensor"]
"""(x (..., n, rows, cols), coefficients (..., n, 1, 1), params, draws, which stack) -> (..., rows, cols)."""


def _apart(combine: Combine) -> Callable[[FactorStack, Any, Draws], LowRank]:
    """A merge that applies `combine` to the A stack and to the B stack."""

    def merge(stack: FactorStack, params: Any, draws: Draws) -> LowRank:
        c = torch.stack(
            [torch.as_tensor(c, dtype=torch.float64, device=stack.a[0].device).expand(stack.batch) for c in stack.coefficients],
            -1,
        )
        root = c.abs().sqrt().to(stack.dtype)[..., None, None]
        a = torch.stack([x.to(stack.dtype) for x in stack.a], -3)
        b = torch.stack([x.to(stack.dtype) for x in stack.b], -3)
        sign = c.sign().to(stack.dtype)[..., None, None]
        return LowRank(b=combine(b, root, params, draws, "B"), a=combine(a, root * sign, params, draws, "A"))

    return merge


def _linear(x: torch.Tensor, coefficients: torch.Tensor, params: Params, draws: Draws, part: str) -> torch.Tensor:
    return (x * coefficients).sum(-3)


def _magnitude_prune(x: torch.Tensor, coefficients: torch.Tensor, params: PeftSparse, draws: Draws, part: str) -> torch.Tensor:
    return _linear(_pruned(x, params), coefficients, params, draws, part)


def _ties(x: torch.Tensor, coefficients: torch.Tensor, params: PeftTies, draws: Draws, part: str) -> torch.Tensor:
    return _elected(_pruned(x, params), coefficients, params)


def _dare_linear(x: torch.Tensor, coefficients: torch.Tensor, params: PeftSparse, draws: Draws, part: str) -> torch.Tensor:
    return _linear(_dropped(x, params, draws, part), coefficients, params, draws, part)


def _dare_ties(x: torch.Tensor, coefficients: torch.Tensor, params: PeftTies, draws: Draws, part: str) -> torch.Tensor:
    return _elected(_dropped(x, params, draws, part), coefficients, params)


def _pruned(x: Float[torch.Tensor, "*batch n rows cols"], params: PeftSparse) -> Float[torch.Tensor, "*batch n rows cols"]:
    flat = x.flatten(-2)
    keep = [int(density * flat.shape[-1]) for density in params.each("density", x.shape[-3])]
    return x * torch.stack([largest_mask(flat[..., t, :], k) for t, k in enumerate(keep)], -2).reshape(x.shape)


def _dropped(
    x: Float[torch.Tensor, "*batch n rows cols"], params: PeftSparse, draws: Draws, part: str
) -> Float[torch.Tensor, "*batch n rows cols"]:
    out: list[torch.Tensor] = []
    for t, density in enumerate(params.each("density", x.shape[-3])):
        each = x[..., t, :, :]
        out.append(each if density == 1 else each * (draws.uniform(t, f"peft_dare drop {part}", each) < density) / density)
    return torch.stack(out, -3)


def _elected(x: torch.Tensor, coefficients: torch.Tensor, params: PeftTies) -> torch.Tensor:
    votes = (x if params.majority_sign_method == "total" else x.sign()).sum(-3, keepdim=True)
    agrees = x.sign() == torch.where(votes >= 0, 1.0, -1.0)
    return (x * coefficients * agrees).sum(-3) / agrees.sum(-3).clamp_min(1)


def _factor(name: str, params: type[Params], combine: Combine) -> Factor:
    return Factor(
        name=name,
        paper="PEFT",
        params=params,
        merge=_apart(combine),
        rank=lambda ranks, params: max(ranks),
        equal_ranks=True,
        keeps_zero=True,
        random=lambda params: combine in (_dare_linear, _dare_ties),
    )


METHODS = (
    _factor("peft_linear", PeftLinear, _linear),
    _factor("peft_magnitude_prune", PeftSparse, _magnitude_prune),
    _factor("peft_ties", PeftTies, _ties),
    _factor("peft_dare_linear", PeftSparse, _dare_linear),
    _factor("peft_dare_ties", PeftTies, _dare_ties),
)

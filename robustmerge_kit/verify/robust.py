"""RobustMerge in float64, from the definition: prune, scale what is left by what was lost, normalise over the adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .expected import Factored
from .stack import UNIT, Stack

Uniform = Callable[[int, str, torch.Tensor], torch.Tensor]
"""(adapter of the stack, purpose, like) -> the keyed random numbers of the shape of `like`."""


def robustmerge(
    stack: Stack,
    uniform: Uniform,
    *,
    variant: str,
    density: Sequence[float],
    gain: float,
    clamp: bool,
    clamp_quantile: float,
    normalize: bool,
    prune: bool,
    scaling: str,
    criterion: str,
) -> Factored:
    """The merged factors of one site; criterion is `magnitude` or `random`."""

    def pruned(t: int, x: torch.Tensor, purpose: str) -> torch.Tensor:
        k = int(x.numel() * (1 - density[t])) if prune else 0
        if k == 0:
            return x
        score = x.abs() if criterion == "magnitude" else uniform(t, purpose, x).double()
        return torch.where(score >= score.flatten().sort().values[k - 1], x, 0.0)

    a = [pruned(t, x, "robustmerge prune A") for t, x in enumerate(stack.a)]
    b = [pruned(t, x, "robustmerge prune B") for t, x in enumerate(stack.b)]

    def settled(losses: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        scales = [_clamped(full, rest, clamp_quantile if clamp else None) for full, rest in losses]
        if not normalize:
            return scales
        total = torch.zeros(max(map(len, scales)), dtype=torch.float64)
        for scale in scales:
            total[: len(scale)] += scale
        return [scale / total[: len(scale)] for scale in scales]

    def losses(
        full: Sequence[torch.Tensor], rest: Sequence[torch.Tensor], axis: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(x.abs().sum(axis), y.abs().sum(axis)) for x, y in zip(full, rest, strict=True)]

    ranks = [torch.ones(len(x), dtype=torch.float64) for x in a]
    if scaling in ("inter", "none"):
        ranks = settled(losses(stack.a, a, 1) if scaling == "inter" else [(one, one) for one in ranks])
    if scaling in ("A", "A+B"):
        columns = settled(losses(stack.a, a, 0))
        a = [x * scale for x, scale in zip(a, columns, strict=True)]
    if scaling in ("B", "A+B"):
        lines = settled(losses(stack.b, b, 1))
        b = [x * scale[:, None] for x, scale in zip(b, lines, strict=True)]
    b = [gain * c * x * scale for c, x, scale in zip(stack.c, b, ranks, strict=True)]
    return _joined(a, b, variant, gain, coarse=stack.coarse)


def _clamped(full: torch.Tensor, rest: torch.Tensor, quantile: float | None) -> torch.Tensor:
    """What was lost, as full / rest; where nothing is left 1, or the floor that clamping sets."""
    finite = rest > 0
    scale = torch.where(finite, full / torch.where(finite, rest, 1.0), 1.0)
    ascending = scale[finite].sort().values
    if quantile is None or not len(ascending):
        return scale
    return scale.clamp(ascending[int(quantile * len(ascending))], ascending[-1])


def _joined(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], variant: str, gain: float, *, coarse: bool) -> Factored:
    unit = (64 if variant == "paper" else 64 + 4 * len(a)) * (UNIT if coarse else UNIT**2)
    if variant == "paper":
        left, right = torch.cat(list(b), 1), torch.cat(list(a))
        return Factored(left, right, noise_b=left.abs() * unit, noise_a=right.abs() * unit, coarse=coarse)
    rank = max(len(x) for x in a)
    right = torch.stack([torch.nn.functional.pad(x, (0, 0, 0, rank - len(x))) for x in a])
    left = torch.stack([torch.nn.functional.pad(x, (0, rank - x.shape[1])) for x in b])
    size = gain if variant == "official" else 1.0
    return Factored(
        left.sum(0),
        size * right.sum(0),
        noise_b=left.abs().sum(0) * unit,
        noise_a=abs(size) * right.abs().sum(0) * unit,
        coarse=coarse,
    )

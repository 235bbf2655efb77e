"""The inputs of one site in float64: weighted deltas made row by row, and how far float32 may be from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..adapters import check_values
from ..base_weight import open_rows
from ..plan import SiteStep

UNIT = 2.0**-24
"""Largest relative error of one rounding to float32."""

Factors = list[tuple[torch.Tensor, torch.Tensor]]
"""(A, B) of every member of a site, as stored; what training took out of the base is behind them in a wider dtype."""


@dataclass(frozen=True)
class OnBase:
    """What a DoRA delta takes from the base: diag(gain) W besides its factors.

    Shapes: gain (d_out,); rows gives (rows, d_in).
    """

    gain: torch.Tensor
    rows: Callable[[int, int], torch.Tensor]


@dataclass(frozen=True)
class Stack:
    """The adapters whose delta at a site is not zero: D_t = c[t] B_t A_t, plus what it takes from the base.

    members: positions among the site's members. places: positions in the recipe. absent: (place, weight) of zero deltas that
    count in a mean. coarse: whether the merge ran in float32, as it does unless every factor is stored in float64. remade:
    whether factors with which training began are among them.

    Shapes: a[t] (r_t, d_in), b[t] (d_out, r_t), float64.
    """

    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]
    c: tuple[float, ...]
    weights: tuple[float, ...]
    members: tuple[int, ...]
    places: tuple[int, ...]
    absent: tuple[tuple[int, float], ...]
    on_base: tuple[OnBase | None, ...]
    coarse: bool
    remade: bool

    def __len__(self) -> int:
        return len(self.a)

    @property
    def shape(self) -> tuple[int, int]:
        return self.b[0].shape[0], self.a[0].shape[1]

    @property
    def factored(self) -> bool:
        """Whether the deltas are products of the factors alone."""
        return not any(self.on_base)

    def rows(self, t: int, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop of D_t."""
        made = self.c[t] * (self.b[t][start:stop] @ self.a[t])
        base = self.on_base[t]
        if base is not None:
            made += base.gain[start:stop, None] * base.rows(start, stop).double()
        return made

    def noise(self, t: int, start: int, stop: int) -> torch.Tensor:
        """The most that a float32 product may be away from the rows of D_t, entry by entry."""
        made = abs(self.c[t]) * (self.b[t][start:stop].abs() @ self.a[t].abs())
        base = self.on_base[t]
        if base is not None:
            made += (base.gain[start:stop, None] * base.rows(start, stop).double()).abs()
        return made * ((len(self.a[t]) + 8) * (UNIT if self.coarse else UNIT**2))

    def dense(self, t: int) -> torch.Tensor:
        """D_t."""
        return self.rows(t, 0, self.shape[0])

    def norms(self, tile: int) -> list[float]:
        """||D_t||_F of every adapter, over tiles of rows."""
        return [
            sum(float(self.rows(t, i, min(i + tile, self.shape[0])).square().sum()) for i in range(0, self.shape[0], tile))
            ** 0.5
            for t in range(len(self))
        ]

    def scaled(self, by: Sequence[float]) -> Stack:
        """The stack with every delta multiplied by a number."""
        assert self.factored
        return replace(self, c=tuple(c * x for c, x in zip(self.c, by, strict=True)))


def read_stacks(step: SiteStep) -> list[tuple[SiteStep, Stack, Factors]]:
    """The inputs of a site, of every fused expert by itself, with the factors as stored.

    Raises: InputError for NaN or Inf, and for files that cannot be read.
    """
    read = [member.factors.read() for member in step.members]
    for member, pair in zip(step.members, read, strict=True):
        for ref, values in zip((member.factors.a, member.factors.b), pair, strict=True):
            check_values(ref.where, values)
    if step.weight is not None and any(member.factors.initial for member in step.members):
        weight = open_rows(step.weight)(0, step.model.d_out).double()
        read = [_begun(step, t, pair, weight) for t, pair in enumerate(read)]
    if step.experts is None:
        return [(step, _stack(step, read), read)]
    parts = [[(a[e], b[e]) for a, b in read] for e in range(step.experts)]
    return [(one, _stack(one, own), own) for one, own in zip(step.each(), parts, strict=True)]


def _stack(step: SiteStep, factors: Factors) -> Stack:
    present: list[int] = []
    zero: list[tuple[int, float]] = list(step.absent)
    for t, (member, (a, b)) in enumerate(zip(step.members, factors, strict=True)):
        if member.factors.magnitude is None and not (a.any() and b.any()):
            zero.append((member.index, member.weight))
        else:
            present.append(t)
    a = [factors[t][0].double() for t in present]
    b = [factors[t][1].double() for t in present]
    on_base: list[OnBase | None] = []
    for i, t in enumerate(present):
        b[i], base = _dora(step, t, a[i], b[i])
        on_base.append(base)
    members = [step.members[t] for t in present]
    return Stack(
        a=tuple(a),
        b=tuple(b),
        c=tuple(member.weight * member.factors.scale for member in members),
        weights=tuple(member.weight for member in members),
        members=tuple(present),
        places=tuple(member.index for member in members),
        absent=tuple(sorted(zero)),
        on_base=tuple(on_base),
        coarse=any(x.dtype != torch.float64 for t in present for x in factors[t]),
        remade=any(member.factors.initial for member in members),
    )


def _begun(
    step: SiteStep, t: int, pair: tuple[torch.Tensor, torch.Tensor], weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[A; A0] and [B | -B0], where training began at s B0 A0 and took it out of the base weight.

    PiSSA: the leading part of an SVD of W. OLoRA: the leading part of W = Q R, of W^T where it is stored so.
    """
    factors, (a, b) = step.members[t].factors, pair
    if factors.initial is None or step.weight is None:
        return pair
    r, s = factors.rank, factors.scale
    if factors.initial == "pissa":
        u, values, vh = torch.linalg.svd(weight, full_matrices=False)
        b0, a0 = u[:, :r] * (values[:r] / s).sqrt(), (values[:r, None] / s).sqrt() * vh[:r]
        signs = _signs(b0)
    elif step.weight.place.transposed:
        q, upper = torch.linalg.qr(weight.T)
        b0, a0 = upper[:r].T, q[:, :r].T
        signs = _signs(a0.T)
    else:
        q, upper = torch.linalg.qr(weight)
        b0, a0 = q[:, :r], upper[:r]
        signs = _signs(b0)
    dtype = torch.float64 if a.dtype == b.dtype == torch.float64 else torch.float32
    missing = r - len(signs)
    b0, a0 = (b0 * signs).to(dtype), (a0 * signs[:, None]).to(dtype)
    return (
        torch.cat([a.to(dtype), a0, a0.new_zeros(missing, a0.shape[1])]),
        torch.cat([b.to(dtype), -b0, b0.new_zeros(b0.shape[0], missing)], 1),
    )


def _signs(columns: torch.Tensor) -> torch.Tensor:
    """What makes the largest number of every column positive."""
    largest = columns.abs().max(0).indices
    return torch.where(columns[largest, torch.arange(columns.shape[1])] < 0, -1.0, 1.0).double()


def _dora(step: SiteStep, t: int, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, OnBase | None]:
    """B with its rows scaled as DoRA does, and the part of the base: W' = diag(m / ||W + s B A||) (W + s B A)."""
    member = step.members[t]
    magnitude = member.factors.read_magnitude()
    if magnitude is None or step.weight is None:
        return b, None
    rows = open_rows(step.weight)
    lengths: list[torch.Tensor] = []
    before: list[torch.Tensor] = []
    tile = max(1, (1 << 20) // a.shape[1])
    for start in range(0, b.shape[0], tile):
        weight = rows(start, min(start + tile, b.shape[0])).double()
        before.append(weight.norm(dim=1))
        lengths.append((weight + member.factors.scale * (b[start : start + tile] @ a)).norm(dim=1))
    length, plain = torch.cat(lengths), torch.cat(before)
    sigma = torch.where(length > 1e-13 * plain, magnitude.double() / torch.where(length > 0, length, 1.0), 0.0)
    return sigma[:, None] * b, OnBase(member.weight * (sigma - 1), rows)

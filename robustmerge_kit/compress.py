"""A dense merged delta to low rank: exact where a side is small, a randomised range finder elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float

from .factors import Spectral
from .method import Draws
from .orthonormal import Basis, orthonormal
from .spaces import Dense

EXACT_SIDE = 2048
"""Up to this many rows or columns the decomposition is exact."""
OVERSAMPLING = 10
POWER_ITERATIONS = 3
HOLD_ENTRIES = 1 << 26
"""Dense deltas up to this size are made once and held; larger ones are made anew for every pass."""


class Compressed(NamedTuple):
    """The leading singular values and vectors of a dense delta, and its whole energy ||D||_F^2 in float64."""

    spectral: Spectral
    energy: torch.Tensor


def compress(dense: Dense, rank: int, draws: Draws) -> Compressed:
    """The best approximation of rank `rank`, capped at the sides of the delta, as a singular value decomposition.

    min(d_out, d_in) <= 2048: exact, from the eigenvectors of the smaller Gram matrix in float64. Else a range finder with
    oversampling 10 and 3 power iterations, keyed draws, then the exact decomposition of the small matrix.

    Shapes: dense (d_out, d_in), one site -> k = min(rank, d_out, d_in).
    Source: Halko, Martinsson, Tropp 2011, Algorithm 4.4.
    """
    source = _Source(dense)
    rank = min(rank, *source.shape)
    if min(source.shape) <= EXACT_SIDE:
        return _exact(source, rank)
    return _range_finder(source, rank, draws)


def compress_to_energy(dense: Dense, share: float, start: int, draws: Draws) -> Compressed:
    """At least as many leading values as keep `share` of the energy: `start`, doubled until it is enough.

    Shapes: dense (d_out, d_in), one site.
    """
    while True:
        found = compress(dense, start, draws)
        if start >= min(dense.shape) or bool(found.spectral.s.square().sum() >= share * found.energy):
            return found
        start *= 2


class _Source:
    """The rows of a dense delta, as often as needed."""

    def __init__(self, dense: Dense) -> None:
        self.shape = tuple(dense.shape)
        self._dense = dense
        self._held = dense.full() if dense.shape.numel() <= HOLD_ENTRIES else None

    def blocks(self) -> Iterator[torch.Tensor]:
        if self._held is not None:
            yield self._held
            return
        for _, block in self._dense.blocks():
            yield block

    def times(self, x: Float[torch.Tensor, "d_in k"]) -> Float[torch.Tensor, "d_out k"]:
        return torch.cat([block @ x.to(block) for block in self.blocks()])

    def transposed_times(self, x: Float[torch.Tensor, "d_out k"]) -> Float[torch.Tensor, "d_in k"]:
        total, start = torch.zeros(self.shape[1], x.shape[1], dtype=x.dtype, device=x.device), 0
        for block in self.blocks():
            part = x[start : start + block.shape[0]]
            total += (block.mT @ part.to(block)).to(x.dtype)
            start += block.shape[0]
        return total


def _exact(source: _Source, rank: int) -> Compressed:
    d_out, d_in = source.shape
    if d_in <= d_out:
        gram = sum(block.double().mT @ block.double() for block in source.blocks())
    else:
        wide = torch.cat(list(source.blocks())).double()
        gram = wide @ wide.mT
    values, vectors = torch.linalg.eigh(gram)
    near = vectors[:, -rank:].flip(-1)
    s = values[-rank:].flip(-1).clamp_min(0).sqrt()
    far = source.times(near) if d_in <= d_out else source.transposed_times(near)
    far = far.double() / torch.where(s > 0, s, 1.0)
    u, v = (far, near) if d_in <= d_out else (near, far)
    return Compressed(_spectral(u, s, v, next(source.blocks())), values.clamp_min(0).sum())


def _range_finder(source: _Source, rank: int, draws: Draws) -> Compressed:
    d_out, d_in = source.shape
    width = min(rank + OVERSAMPLING, d_out, d_in)
    first = next(source.blocks())
    probe = draws.uniform(None, "compress probe", first.new_empty((d_in, width), dtype=torch.float32)) - 0.5
    range_ = source.times(probe)
    for _ in range(POWER_ITERATIONS):
        other = orthonormal(source.transposed_times(orthonormal(range_, exact=False)[0].full), exact=False)[0].full
        range_ = source.times(other)
    q = orthonormal(range_, exact=False)[0].full
    small = source.transposed_times(q)
    v, s, wh = torch.linalg.svd(small.double(), full_matrices=False)
    energy = torch.stack([block.square().sum(dtype=torch.float64) for block in source.blocks()]).sum()
    return Compressed(_spectral(q @ wh.mT[:, :rank], s[:rank], v[:, :rank], first), energy)


def _spectral(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, like: torch.Tensor) -> Spectral:
    """A decomposition whose bases are the singular vectors themselves."""
    eye = torch.eye(len(s), dtype=torch.float64, device=s.device)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    keep = s > max(len(u), len(v)) * torch.finfo(dtype).eps * s[:1]
    return Spectral(Basis.of(u.to(dtype)), eye * keep, s * keep, eye * keep, Basis.of(v.to(dtype)))

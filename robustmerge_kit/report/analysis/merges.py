"""What a merged update does to the updates it was made of, at one site."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from ...factors import Spectral
from ...orthonormal import Basis
from .records import Direction, Merge, TaskInMerge
from .updates import Svd, Updates


@dataclass(frozen=True)
class MergedUpdate:
    """A merged update as singular values and vectors, before its rank is cut.

    energy: its whole squared norm, which is more than that of `spectral` where a dense result was compressed.
    cut: the rank it is written with.
    """

    spectral: Spectral
    energy: float
    cut: int


def judge(merged: MergedUpdate, updates: Updates, places: range) -> Merge:
    """What a merge does to every update; None for the positions in `places` that have none.

    With C_b = Q_b^T Q_b' and C_a likewise between the bases of the updates and of the merged update, everything follows from
    the singular vectors in the core: L_t = U_t^T C_b U', M_t = V_t^T C_a V', <D, D_t> = s_t^T (L_t * M_t) s',
    P = U_t U_t^T D V_t V_t^T is L_t diag(s') M_t^T in the singular vectors of D_t.
    """
    whole = merged.spectral.s.double().cpu()
    k = min(merged.cut, int((whole > 0).sum()))
    squares = whole.square()
    kept, seen = float(squares[:k].sum()), float(squares.sum())
    energy = max(merged.energy, seen)
    if energy == 0:
        return nothing(updates, places)
    left = _in_core(updates.q_b, merged.spectral.q_b, merged.spectral.u[:, :k])
    right = _in_core(updates.q_a, merged.spectral.q_a, merged.spectral.v[:, :k])
    s = whole[:k]
    tasks = {index: _task(update, update.u.mT @ left, update.v.mT @ right, s) for index, update in updates.each.items()}
    positive = whole[whole > 0]
    return Merge(
        rank=k,
        norm=kept**0.5,
        kept=kept / energy,
        known=min(1.0, seen / energy),
        invented=_outside(updates, left, right, s) if updates.each else 1.0,
        spectrum=tuple(positive.tolist()),
        energy=tuple((positive.square().cumsum(0) / energy).clamp_max(1).tolist()),
        tasks=tuple(tasks.get(place) for place in places),
    )


def _in_core(basis: Basis, other: Basis, vectors: Float[torch.Tensor, "q k"]) -> Float[torch.Tensor, "q_core k"]:
    """Columns other @ vectors in the coordinates of an orthonormal basis; what lies outside of its span is left out."""
    return (basis.mT.to(other.dtype) @ (other @ vectors)).double().cpu()


def _task(
    update: Svd, crossed: Float[torch.Tensor, "k_t k"], turned: Float[torch.Tensor, "k_t k"], s: Float[torch.Tensor, "k"]
) -> TaskInMerge:
    inner = float(update.s @ (crossed * turned) @ s)
    size = update.energy
    projection = inner / size
    through = (crossed * s) @ turned.mT
    crosstalk = float(torch.linalg.matrix_norm(through - projection * update.s.diag())) / size**0.5
    norm = float(torch.linalg.vector_norm(s))
    top, rest = match(update.s, crossed.abs(), turned.abs(), s)
    return TaskInMerge(
        cosine=max(-1.0, min(1.0, inner / (size**0.5 * norm))) if norm else None,
        projection=projection,
        crosstalk=crosstalk,
        destroyed=destroyed(projection, crosstalk),
        top=top,
        rest=rest,
    )


def destroyed(projection: float, crosstalk: float) -> float:
    """Share of an update that no rescaling of the merge, seen through the update's subspaces, gives back."""
    if projection <= 0:
        return 1.0
    return crosstalk**2 / (projection**2 + crosstalk**2)


def match(
    original: Float[torch.Tensor, "k_t"],
    left: Float[torch.Tensor, "k_t k"],
    right: Float[torch.Tensor, "k_t k"],
    s: Float[torch.Tensor, "k"],
) -> tuple[Direction, Direction | None]:
    """How the directions of an update are found again: the first one, and the mean of the others, None if there is none.

    One direction of the merge for each, so that the sum of left * right, the |cosine| of the rank-one matrices u v^T, is
    largest. A direction without partner counts as 0.

    Shapes: left, right |cosines| of an update's directions (rows) with the merge's (columns).
    Source: arXiv 2502.17159, Fig. 7.
    """
    figures = torch.zeros(len(original), 3, dtype=torch.float64)
    rows, columns = (torch.as_tensor(x) for x in linear_sum_assignment((left * right).numpy(), maximize=True))
    figures[rows] = torch.stack((left[rows, columns], right[rows, columns], s[columns] / original[rows]), -1)
    top = _direction(figures[0])
    return top, _direction(figures[1:].mean(0)) if len(original) > 1 else None


def _direction(figures: Float[torch.Tensor, "3"]) -> Direction:
    left, right, ratio = figures.tolist()
    return Direction(left=min(1.0, left), right=min(1.0, right), ratio=ratio)


def _outside(updates: Updates, left: torch.Tensor, right: torch.Tensor, s: torch.Tensor) -> float:
    """Share of the energy of the merged update beyond the joint subspaces of all updates."""
    outputs, inputs = updates.joint
    inside = (outputs.mT @ left * s) @ (inputs.mT @ right).mT
    return max(0.0, 1.0 - float(inside.square().sum() / s.square().sum()))


def nothing(updates: Updates | None, places: range) -> Merge:
    """A merged update that is zero: everything is gone."""
    gone = Direction(left=0.0, right=0.0, ratio=0.0)
    tasks = {
        index: TaskInMerge(
            cosine=None, projection=0.0, crosstalk=0.0, destroyed=1.0, top=gone, rest=gone if update.rank > 1 else None
        )
        for index, update in (updates.each if updates else {}).items()
    }
    listed = tuple(tasks.get(place) for place in places)
    return Merge(rank=0, norm=0.0, kept=1.0, known=1.0, invented=0.0, spectrum=(), energy=(), tasks=listed)


def total_energy(spectra: list[tuple[tuple[float, ...], float]]) -> tuple[float, ...]:
    """Share of the energy of all sites that their first 1, 2, .. directions keep, from singular values and whole energies."""
    longest = max((len(spectrum) for spectrum, _ in spectra), default=0)
    whole = math.fsum(energy for _, energy in spectra)
    if not longest or not whole:
        return ()
    by_rank = [math.fsum(s[k] ** 2 for s, _ in spectra if k < len(s)) for k in range(longest)]
    shares: list[float] = []
    running = 0.0
    for share in by_rank:
        running += share
        shares.append(min(1.0, running / whole))
    return tuple(shares)

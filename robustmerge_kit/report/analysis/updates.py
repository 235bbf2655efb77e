"""The updates at one site, two by two and each by itself, from their exact small cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch
from jaxtyping import Float

from ...factors import Core, svd
from .records import Pair, Subspaces


@dataclass(frozen=True)
class Svd:
    """U diag(s) V^T of an update in the coordinates of the site's core, nothing beyond the numerical rank.

    Shapes: u (q_b, k), s (k,) descending and positive, v (q_a, k); float64.
    """

    u: Float[torch.Tensor, "q_b k"]
    s: Float[torch.Tensor, "k"]
    v: Float[torch.Tensor, "q_a k"]

    @property
    def rank(self) -> int:
        return len(self.s)

    @property
    def energy(self) -> float:
        """||D||_F^2."""
        return float(self.s.square().sum())


class Updates:
    """All updates of a site in one pair of orthonormal bases. `places` are the positions of those that are not zero.

    Small matrices are on the CPU, wherever the long bases are.
    """

    def __init__(self, core: Core, indices: Sequence[int]) -> None:
        self.q_b, self.q_a, self.eps = core.q_b, core.q_a, core.eps
        small = Core(core.q_b, core.q_a, core.r_b.cpu(), core.r_a.cpu(), core.ranks, core.eps)
        each: dict[int, Svd] = {}
        for index, (u, s, v) in zip(indices, small.svds, strict=True):
            k = int((s > 0).sum())
            if k:
                each[index] = Svd(u[:, :k], s[:k], v[:, :k])
        self.each = each

    @property
    def ranks(self) -> list[int]:
        return [update.rank for update in self.each.values()]

    @cached_property
    def u(self) -> Float[torch.Tensor, "q_b K"]:
        """Left singular vectors of all updates side by side."""
        return torch.cat([update.u for update in self.each.values()], -1)

    @cached_property
    def v(self) -> Float[torch.Tensor, "q_a K"]:
        """Right singular vectors of all updates side by side."""
        return torch.cat([update.v for update in self.each.values()], -1)

    @cached_property
    def joint(self) -> tuple[Float[torch.Tensor, "q_b k_b"], Float[torch.Tensor, "q_a k_a"]]:
        """Orthonormal bases of all outputs and of all inputs that any update uses."""
        return _span(self.u, self.eps), _span(self.v, self.eps)


def compare(updates: Updates) -> list[Pair]:
    """Every two updates of a site; sign conflicts are left open.

    Let L = U_i^T U_j and M = V_i^T V_j. Then <D_i, D_j> = s_i^T (L * M) s_j, the singular values of L and M are the cosines of
    the principal angles, and U_j^T D_i V_j = L^T diag(s_i) M.
    """
    places, ranks = list(updates.each), updates.ranks
    if len(places) < 2:
        return []
    left, right = (_blocks(x.mT @ x, ranks) for x in (updates.u, updates.v))
    at = [(i, j) for i in range(len(places)) for j in range(i + 1, len(places))]
    left_cosines = _singular_values([left[i][j] for i, j in at])
    right_cosines = _singular_values([right[i][j] for i, j in at])
    found: list[Pair] = []
    for (i, j), lefts, rights in zip(at, left_cosines, right_cosines, strict=True):
        one, two = updates.each[places[i]], updates.each[places[j]]
        crossed, turned = left[i][j], right[i][j]
        inner = float(one.s @ (crossed * turned) @ two.s)
        size = (one.energy * two.energy) ** 0.5
        seen_by_two = float((crossed.mT @ (one.s[:, None] * turned)).square().sum())
        seen_by_one = float((crossed @ (two.s[:, None] * turned.mT)).square().sum())
        found.append(
            Pair(
                first=places[i],
                second=places[j],
                cosine=max(-1.0, min(1.0, inner / size)),
                norm_ratio=(one.energy / two.energy) ** 0.5,
                left=subspaces(lefts),
                right=subspaces(rights),
                shared_first=min(1.0, seen_by_two / one.energy),
                shared_second=min(1.0, seen_by_one / two.energy),
                sign_conflict=None,
                angles_left=tuple(degrees(lefts).tolist()),
                angles_right=tuple(degrees(rights).tolist()),
            )
        )
    return found


def subspaces(cosines: Float[torch.Tensor, "k"]) -> Subspaces:
    """What is said of the principal angles with these cosines, which descend."""
    angles: list[float] = degrees(cosines).tolist()
    overlap = float(cosines.clamp(0, 1).square().mean())
    return Subspaces(overlap=overlap, smallest=angles[0], median=median(angles), largest=angles[-1])


def degrees(cosines: Float[torch.Tensor, "k"]) -> Float[torch.Tensor, "k"]:
    """Angles in degrees, ascending."""
    return torch.rad2deg(torch.acos(cosines.clamp(0, 1)))


def _blocks(x: torch.Tensor, ranks: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
    return [rows.split(list(ranks), -1) for rows in x.split(list(ranks), -2)]


def _singular_values(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Singular values of each; those of one shape in one call."""
    shapes: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        shapes.setdefault(matrix.shape, []).append(index)
    found: dict[int, torch.Tensor] = {}
    for places in shapes.values():
        values = torch.linalg.svdvals(torch.stack([matrices[index] for index in places]))
        found.update(zip(places, values, strict=True))
    return [found[index] for index in range(len(matrices))]


def _span(x: Float[torch.Tensor, "q k"], eps: float) -> Float[torch.Tensor, "q p"]:
    """An orthonormal basis of the columns' span, its rank judged at the precision of the inputs."""
    u, s, _ = svd(x, eps)
    return u[:, s > 0]

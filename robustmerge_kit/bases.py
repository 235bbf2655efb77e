"""Common bases of the deltas at one site: singular vectors of the core, the joint decomposition, the common subspace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from .factors import Core

EIGEN_EPS = 1e-10
"""Ranks judged at this precision or coarser may come from a Gram matrix in float64, whose values carry errors of 1e-8."""


class CoreOptions(BaseModel):
    """Options of `space: core`. basis: singular vectors of the joined factors (published), or of the joined deltas."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    basis: Literal["factors", "deltas"] = "factors"


class CtmOptions(BaseModel):
    """Options of `space: ctm`.

    rank: of the common basis, default the largest of the adapters. beta: 1 leaves the norms of the deltas as they are for the
    choice of the basis, 0 makes them equal. tol, max_iter: when the sweeps end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rank: Annotated[int, Field(ge=1)] | None = None
    beta: Annotated[float, Field(ge=0, le=1)] = 0.25
    tol: Annotated[float, Field(ge=0)] = 1e-6
    max_iter: Annotated[int, Field(ge=1, le=100_000)] = 1000


def singular_basis(core: Core, options: CoreOptions) -> tuple[Float[torch.Tensor, "q_b k_b"], Float[torch.Tensor, "q_a k_a"]]:
    """The bases of `space: core` in the coordinates of the core, one site.

    Left and right singular vectors of [c_1 B_1 | .. | c_n B_n] and [A_1; ..; A_n] (`factors`), or of [D_1 | .. | D_n] and
    [D_1; ..; D_n] (`deltas`). Directions beyond the numerical rank, zero padding among them, are left out.

    Shapes: core of one site -> (q_b, k_b), (q_a, k_a).
    Source: arXiv 2509.17786, Eq. 5 to 8. Differs: scales are folded into B first; the published code ignores them.
    """
    if options.basis == "factors":
        return _left(core.r_b, core.eps), _left(core.r_a, core.eps)
    turned = [(a, b) for b, a in core.pairs]
    return joint(core.pairs, core.eps)[0], joint(turned, core.eps)[0]


def joint(
    pairs: Sequence[tuple[Float[torch.Tensor, "q _"], Float[torch.Tensor, "p _"]]], eps: float, cut: float = 0.0
) -> tuple[Float[torch.Tensor, "q k"], Float[torch.Tensor, "k"]]:
    """Left singular vectors and values of [L_1 M_1^T | .. | L_n M_n^T] from the pairs (L_t, M_t), one site.

    k is the numerical rank; `cut` drops the values up to that fraction of the largest one too.

    Shapes: L_t (q, r_t), M_t (p, r_t) -> (q, k), (k,) descending, float64.
    Source: arXiv 2410.19735, Eq. 4. Differs: the rank cut is relative; the original's absolute 1e-5 drops real directions.
    """
    if eps > EIGEN_EPS:
        gram = torch.stack([left @ (right.mT @ right) @ left.mT for left, right in pairs]).sum(0)
        u, s = _eigen(gram)
        size = max(len(gram), sum(left.shape[-1] for left, _ in pairs))
    else:
        small = torch.cat([left @ torch.linalg.qr(right)[1].mT for left, right in pairs], -1)
        u, s, _ = torch.linalg.svd(small, full_matrices=False)
        size = max(small.shape)
    keep = (s > size * eps * s[:1]) & (s > cut * s[:1])
    return u[:, keep], s[keep]


def common_basis(
    core: Core, options: CtmOptions
) -> tuple[Float[torch.Tensor, "*batch q_b k"], Float[torch.Tensor, "*batch q_a k"]]:
    """Orthonormal U, V that keep as much as possible of all cores: the sum of ||U^T X_t V||^2 is maximised by turns.

        X_t = (beta m_t + (1 - beta) mean(m)) M_t / m_t, m_t = ||M_t||_F
        U <- top k left singular vectors of [X_1 V | .. | X_n V], then V <- those of [X_1^T U | .. | X_n^T U], repeatedly
        e = sqrt(|sum ||X_t||^2 - sum ||U^T X_t V||^2|) / sqrt(sum ||X_t||^2) after each sweep
        stop at the first sweep i >= 3 with |e_(i-1) - e_i| < tol, or at max_iter

    Shapes: cores (..., n, q_b, q_a) -> (..., q_b, k), (..., q_a, k), float64, k capped at min(q_b, q_a).
    Source: arXiv 2606.03723, Algorithm 1.
    """
    cores, sizes = core.cores, core.norms
    k = min(options.rank or max(core.ranks), *cores.shape[-2:])
    balance = (options.beta * sizes + (1 - options.beta) * sizes.mean(-1, keepdim=True)) / sizes
    x = cores * balance[..., None, None]
    whole = x.square().sum((-3, -2, -1))
    u, v = _top(_outer(x), k), _top(_outer(x.mT), k)
    error = torch.full_like(whole, torch.inf)
    going = torch.ones_like(whole, dtype=torch.bool)
    for sweep in range(1, options.max_iter + 1):
        next_u = _top(_outer(x @ v[..., None, :, :]), k)
        projected = next_u.mT[..., None, :, :] @ x
        next_v = _top(_outer(projected.mT), k)
        kept = (projected @ next_v[..., None, :, :]).square().sum((-3, -2, -1))
        # Sites of a batch that have stopped keep their basis.
        u = torch.where(going[..., None, None], next_u, u)
        v = torch.where(going[..., None, None], next_v, v)
        previous, error = error, ((whole - kept).abs() / whole).sqrt()
        if sweep >= 3:
            going = going & ((previous - error).abs() >= options.tol)
            if not bool(going.any()):
                break
    return u, v


def _left(x: Float[torch.Tensor, "q p"], eps: float) -> Float[torch.Tensor, "q k"]:
    """Left singular vectors within the numerical rank."""
    u, s = _eigen(x @ x.mT) if eps > EIGEN_EPS else torch.linalg.svd(x, full_matrices=False)[:2]
    return u[:, : int((s > max(x.shape) * eps * s[:1]).sum())]


def _eigen(gram: Float[torch.Tensor, "q q"]) -> tuple[Float[torch.Tensor, "q q"], Float[torch.Tensor, "q"]]:
    """Left singular vectors and values of x from x x^T."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors.flip(-1), values.flip(-1).clamp_min(0).sqrt()


def _outer(x: Float[torch.Tensor, "*batch n q p"]) -> Float[torch.Tensor, "*batch q q"]:
    """[x_1 | .. | x_n] times its transpose."""
    joined = x.movedim(-3, -2).flatten(-2)
    return joined @ joined.mT


def _top(gram: Float[torch.Tensor, "*batch q q"], k: int) -> Float[torch.Tensor, "*batch q k"]:
    """Eigenvectors of the k largest eigenvalues, largest first."""
    return torch.linalg.eigh(gram)[1][..., -k:].flip(-1)

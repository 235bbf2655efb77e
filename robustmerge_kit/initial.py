"""PiSSA and OLoRA: adapters whose training began with a part of the base weight, taken out of the base.

Training starts at factors B0, A0 of the weight W and at the base W - s B0 A0, where s is the adapter's scale. So what an
adapter B, A changes in the plain base is of low rank, exactly:

    D = (W - s B0 A0) + s B A - W = s [B | -B0] [A; A0]

    pissa   s B0 A0 = U_r S_r V_r^T     the r leading singular triplets of W; B0 = U_r sqrt(S_r / s), A0 = sqrt(S_r / s) V_r^T
    olora   B0 A0 = Q_r Q_r^T W         Q_r: orthonormal columns that span the first r columns of W; B0 = Q_r, A0 = Q_r^T W

W stands for the base weight seen as (d_out, d_in). OLoRA takes it as it is stored: of a weight stored [in, out], Q_r spans the
first r columns of W^T, and the product is transposed. The products do not depend on signs, and only where W has two
equal values S_r = S_(r+1), or its first columns depend on each other, on more than W.

Source: PiSSA, arXiv:2404.02948, eqs. (2)-(4); OLoRA, arXiv:2406.01775, algorithm 1; both as PEFT starts them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float

from .factors import LowRank, ratio
from .leading import right_vectors, tiles


def take_out(
    a: Float[torch.Tensor, "r d_in"], b: Float[torch.Tensor, "d_out r"], initial: LowRank
) -> tuple[Float[torch.Tensor, "r2 d_in"], Float[torch.Tensor, "d_out r2"]]:
    """A and B of the delta to the plain base: [A; A0] and [B | -B0], in float32 or the wider dtype of the factors."""
    dtype = torch.promote_types(torch.float32, torch.promote_types(a.dtype, b.dtype))
    return torch.cat([a.to(dtype), initial.a.to(a.device, dtype)]), torch.cat([b.to(dtype), -initial.b.to(b.device, dtype)], 1)


def leading_triplets(weight: Float[torch.Tensor, "d_out d_in"], rank: int, scale: float) -> LowRank:
    """B0 and A0 of PiSSA, float64, from a weight of any floating dtype; zeros beyond min(d_out, d_in).

    The largest entry by magnitude of every column of B0 is positive.
    """
    wide = weight.shape[0] < weight.shape[1]
    tall = weight.mT if wide else weight
    vectors = right_vectors(tall, rank)
    scaled = torch.cat([rows @ vectors for _, rows in tiles(tall)])
    values = torch.linalg.vector_norm(scaled, dim=0)
    others = ratio(scaled, values.expand_as(scaled))
    u, v = (vectors, others) if wide else (others, vectors)
    root = (values / scale).sqrt()
    return _signed(u * root, (v * root).mT, rank)


def leading_columns(weight: Float[torch.Tensor, "rows cols"], rank: int) -> LowRank:
    """B0 and A0 of OLoRA for a weight as it is stored, float64; zeros beyond min(rows, cols)."""
    q = torch.linalg.qr(weight[:, :rank].double()).Q
    a = torch.zeros(q.shape[1], weight.shape[1], dtype=torch.float64, device=weight.device)
    for first, rows in tiles(weight):
        a.addmm_(q[first : first + len(rows)].mT, rows)
    return _signed(q, a, rank)


def _signed(b: torch.Tensor, a: torch.Tensor, rank: int) -> LowRank:
    largest = b.gather(0, b.abs().argmax(0, keepdim=True))[0]
    sign = torch.where(largest < 0, -1.0, 1.0)
    missing = rank - b.shape[1]
    return LowRank(
        torch.nn.functional.pad(b * sign, (0, missing)), torch.nn.functional.pad(a * sign[:, None], (0, 0, 0, missing))
    )

"""The leading right singular vectors of a large matrix, to float64 where that is quick, and no worse than its gap allows.

W^T W is never rounded below float64, so that vectors whose singular values are close by are told apart better than an SVD in
float32 does. A block Krylov space of W^T W holds the leading vectors after few products with W where singular values decay, as
those of trained weights do; its residual proves it. Where it does not get there, all eigenvectors are computed.

Source: Golub and Underwood, The block Lanczos method (1977); the bound is Davis and Kahan's: sin(angle) <= residual / gap.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float

EXACT_SIDE = 1024
"""Columns up to which all eigenvectors are computed."""
PRECISION = 1e-8
"""Sine of the angle that the vectors found may be off; one rounding to float32 is 6e-8."""
MORE = 16
"""Columns of a Krylov block beyond the vectors wanted."""
LOOK = 4
"""Blocks between two looks at what has been found."""
TILE = 1 << 20
"""Entries of the matrix that are looked at together in float64."""


def right_vectors(matrix: Float[torch.Tensor, "rows cols"], count: int) -> Float[torch.Tensor, "cols k"]:
    """V of the min(count, cols) leading singular triplets, float64, in descending order; rows >= cols, any floating dtype.

    The same for any machine up to rounding: where a search starts is fixed.
    """
    cols = matrix.shape[1]
    found = _search(matrix, count) if cols > EXACT_SIDE else None
    if found is not None:
        return found
    gram = torch.zeros(cols, cols, dtype=torch.float64, device=matrix.device)
    for _, rows in tiles(matrix):
        gram.addmm_(rows.mT, rows)
    return torch.linalg.eigh(gram).eigenvectors[:, -count:].flip(1)


def tiles(matrix: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows in float64, a tile at a time, with the number of the first."""
    size = max(1, TILE // matrix.shape[1])
    for first in range(0, matrix.shape[0], size):
        yield first, matrix[first : first + size].double()


def _search(matrix: torch.Tensor, count: int) -> torch.Tensor | None:
    """The vectors in a Krylov space of a quarter of all columns; None where they are not in it."""
    cols, block = matrix.shape[1], count + MORE
    start = torch.randn(cols, block, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    newest = torch.linalg.qr(start.to(matrix.device)).Q
    basis, images = newest, newest[:, :0]
    for step in range(1, cols // 4 // block + 1):
        image = _squared(matrix, newest)
        images = torch.cat((images, image), 1)
        if step % LOOK == 0:
            found = _leading(basis, images, count)
            if found is not None:
                return found
        newest = image
        for _ in range(2):
            newest = torch.linalg.qr(newest - basis @ (basis.mT @ newest)).Q
        basis = torch.cat((basis, newest), 1)
    return None


def _squared(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """W^T W x."""
    total = torch.zeros_like(x)
    for _, rows in tiles(matrix):
        total.addmm_(rows.mT, rows @ x)
    return total


def _leading(basis: torch.Tensor, images: torch.Tensor, count: int) -> torch.Tensor | None:
    """The leading Ritz vectors, None while they may be off by more than `PRECISION`. images: W^T W basis."""
    small = basis.mT @ images
    values, inner = torch.linalg.eigh((small + small.mT) / 2)
    vectors = basis @ inner[:, -count:]
    residual = torch.linalg.matrix_norm(images @ inner[:, -count:] - vectors * values[-count:])
    gap = values[-count] - values[-count - 1]
    return vectors.flip(1) if bool(residual <= PRECISION * gap) else None

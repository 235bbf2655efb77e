"""How many directions separate two matrices of models, told apart from the rounding of what is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ...factors import EPS
from ...shards import TensorRef

MOST = 64
"""Directions that are counted; where it is reached there may be more."""

_SPARE = 16
"""Columns of the sketch beyond `MOST`: the last ones of a sketch are blurred."""

_ROUNDING = 0.045
"""Mean square of the rounding error of values x, in units of eps^2 times their mean square.

An error is uniform within half a unit in the last place u, so its mean square is u^2 / 12, and u^2 / (eps x)^2 is 0.54 in the
mean over mantissas that are uniform in the logarithm.
"""

_MARGIN = 1.2
"""How far a singular value must stand out of those of rounding."""


def count_directions(a: TensorRef, b: TensorRef, elements: int) -> int | None:
    """The numerical rank of B - A, at most `MOST`; None where one of them is no matrix of floating point numbers.

    A singular value counts when it is above 1.2 times the norm that rounding errors of all stored values would have, taken as
    independent: sqrt(mean square) * (sqrt(d_out) + sqrt(d_in)). Singular values come from a random sketch with one power
    iteration, in three passes over the rows; `elements` of each matrix are in memory at a time, beside two sketches of
    `MOST` + 16 rows.

    Source: Halko, Martinsson, Tropp, Finding structure with randomness, SIAM Review 53 (2011), algorithm 4.4.
    """
    shape = a.spec.shape
    dtypes = [getattr(torch, ref.spec.dtype) for ref in (a, b)]
    if len(shape) != 2 or not a.spec.numel or not all(dtype.is_floating_point for dtype in dtypes):
        return None
    width = min(MOST + _SPARE, *shape)
    test = torch.randn(shape[1], width, generator=torch.Generator().manual_seed(0))
    sketch = torch.empty(shape[0], width)
    squares = [0.0, 0.0]
    for rows, x, y in _rows(a, b, elements):
        sketch[rows] = (y - x) @ test
        squares = [total + float(torch.dot(z.reshape(-1), z.reshape(-1))) for total, z in zip(squares, (x, y), strict=True)]
    basis = torch.linalg.qr(sketch)[0]
    across = torch.zeros(width, shape[1])
    for rows, x, y in _rows(a, b, elements):
        across += basis[rows].mT @ (y - x)
    basis = torch.linalg.qr(across.mT)[0]
    for rows, x, y in _rows(a, b, elements):
        sketch[rows] = (y - x) @ basis
    s = torch.linalg.svdvals(sketch)
    errors = sum(_ROUNDING * torch.finfo(dtype).eps ** 2 * total for dtype, total in zip(dtypes, squares, strict=True))
    noise = math.sqrt(errors / a.spec.numel) * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    threshold = max(_MARGIN * noise, max(shape) * EPS * float(s[0]))
    return min(MOST, int((s > threshold).sum()))


def _rows(a: TensorRef, b: TensorRef, elements: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Tiles of rows of both matrices in float32."""
    d_out, d_in = a.spec.shape
    height = max(1, elements // d_in)
    for start in range(0, d_out, height):
        stop = min(start + height, d_out)
        x, y = (ref.read_flat(start * d_in, stop * d_in).view(stop - start, d_in).float() for ref in (a, b))
        yield slice(start, stop), x, y

"""The base weight of one site as its delta sees it, read in tiles of rows."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor

from .dora import Rows
from .plan import BaseWeight

IN_MEMORY = 64 << 20
"""Bytes of a weight that may be held to be turned over; a larger one waits in a file."""
TILE = 1 << 21
"""Elements that are read together."""


def open_rows(weight: BaseWeight) -> Rows:
    """Rows of the weight seen as (d_out, d_in), in its stored dtype; one that is stored the other way round is turned over."""
    place = weight.place
    if place.transposed:
        turned = _turned(weight)
        return lambda start, stop: turned[start:stop]

    def rows(start: int, stop: int) -> Tensor:
        first = place.first + start * place.cols
        return weight.ref.read_flat(first, place.first + stop * place.cols).view(stop - start, place.cols)

    return rows


def _turned(weight: BaseWeight) -> Tensor:
    place = weight.place
    dtype: torch.dtype = getattr(torch, weight.ref.spec.dtype)
    size = place.rows * place.cols
    if size * dtype.itemsize <= IN_MEMORY:
        whole = torch.empty(place.cols, place.rows, dtype=dtype)
    else:
        # The system may write such a file out; it has no name and vanishes with its last use.
        with tempfile.NamedTemporaryFile(prefix="rmkit-") as file:
            whole = torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(place.cols, place.rows)
    step = max(1, TILE // place.cols)
    for start in range(0, place.rows, step):
        stop = min(start + step, place.rows)
        flat = weight.ref.read_flat(place.first + start * place.cols, place.first + stop * place.cols)
        whole[:, start:stop] = flat.view(stop - start, place.cols).T
    return whole

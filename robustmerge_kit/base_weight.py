"""The base weight of one site as its delta sees it, read in tiles of rows, and deltas that are relative to it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch

from .adapters import check_values
from .dora import Rows
from .factors import LowRank
from .initial import leading_columns, leading_triplets, take_out
from .plan import BaseWeight, Member, SiteStep

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

    def rows(start: int, stop: int) -> torch.Tensor:
        first = place.first + start * place.cols
        return weight.ref.read_flat(first, place.first + stop * place.cols).view(stop - start, place.cols)

    return rows


def relative_to_base(
    step: SiteStep, factors: Sequence[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) of every member's delta to the plain base: of a member that began with a part of it, without that part.

    factors: as stored. The part is made on the device and comes back from it.

    Raises: InputError for NaN or Inf in the base weight.
    """
    if step.weight is None or not any(member.factors.initial for member in step.members):
        return list(factors)
    weight = open_rows(step.weight)(0, step.model.d_out)
    check_values(step.weight.ref.where, weight)
    weight = weight.to(device)
    made: dict[object, LowRank] = {}
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for member, (a, b) in zip(step.members, factors, strict=True):
        if member.factors.initial is None:
            found.append((a, b))
            continue
        key = member.factors.initial, member.factors.rank, member.factors.scale
        if key not in made:
            made[key] = _initial(member, weight, transposed=step.weight.place.transposed)
        found.append(take_out(a, b, made[key]))
    return found


def _initial(member: Member, weight: torch.Tensor, *, transposed: bool) -> LowRank:
    factors = member.factors
    if factors.initial == "pissa":
        return leading_triplets(weight, factors.rank, factors.scale)
    stored = leading_columns(weight.mT if transposed else weight, factors.rank)
    return LowRank(stored.a.mT, stored.b.mT) if transposed else stored


def _turned(weight: BaseWeight) -> torch.Tensor:
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

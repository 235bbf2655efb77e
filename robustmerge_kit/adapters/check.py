"""Checks that need the numbers, done while they stream by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import torch


def check_values(where: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and infinity. `where` names file and tensor.

    Raises: InputError with the number of such values.
    """
    find_zeros([(where, tensor)])


def find_zeros(named: Sequence[tuple[str, torch.Tensor]]) -> list[bool]:
    """Of each tensor: whether all its values are zero. NaN and infinity are refused; names say file and tensor.

    Raises: InputError with the number of such values.
    """
    from .. import native

    looked_at = {i: tensor for i, (_, tensor) in enumerate(named) if tensor.numel() and tensor.dtype.is_floating_point}
    natively = {i: tensor for i, tensor in looked_at.items() if native.fits(tensor)}
    others = {i: tensor for i, tensor in looked_at.items() if i not in natively}
    found = dict(zip(natively, native.scan(list(natively.values())), strict=True))
    found |= zip(others, _scan(list(others.values())), strict=True)
    zeros = [False] * len(named)
    for i in looked_at:
        finite, zeros[i] = found[i]
        if not finite:
            raise _not_finite(*named[i])
    return zeros


def _scan(tensors: Sequence[torch.Tensor]) -> list[tuple[bool, bool]]:
    """Of each tensor: (all values are finite, all values are zero)."""
    import torch

    if not tensors:
        return []
    bounds = [bound for tensor in tensors for bound in torch.aminmax(tensor)]
    if len({bound.dtype for bound in bounds}) > 1:
        bounds = [bound.double() for bound in bounds]
    # One transfer for all tensors: each would cost a turn of the interpreter, or of the GPU.
    values: list[float] = torch.stack(bounds).tolist()
    pairs = zip(values[::2], values[1::2], strict=True)
    return [(math.isfinite(low) and math.isfinite(high), low == 0 == high) for low, high in pairs]


def _not_finite(where: str, tensor: torch.Tensor) -> InputError:
    count = int(tensor.numel() - tensor.isfinite().sum())
    return InputError(
        f"holds NaN/Inf ({count} values)",
        where=where,
        hint="the training diverged or the file is damaged; use an earlier checkpoint",
    )

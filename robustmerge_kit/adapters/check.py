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
    import torch

    looked_at = [i for i, (_, tensor) in enumerate(named) if tensor.numel() and tensor.is_floating_point()]
    zeros = [False] * len(named)
    if not looked_at:
        return zeros
    bounds = [bound for i in looked_at for bound in torch.aminmax(named[i][1])]
    if len({bound.dtype for bound in bounds}) > 1:
        bounds = [bound.double() for bound in bounds]
    # One transfer for all tensors: each would cost a turn of the interpreter, or of the GPU.
    values: list[float] = torch.stack(bounds).tolist()
    for i, low, high in zip(looked_at, values[::2], values[1::2], strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):
            raise _not_finite(*named[i])
        zeros[i] = low == 0 == high
    return zeros


def _not_finite(where: str, tensor: torch.Tensor) -> InputError:
    count = int(tensor.numel() - tensor.isfinite().sum())
    return InputError(
        f"holds NaN/Inf ({count} values)",
        where=where,
        hint="the training diverged or the file is damaged; use an earlier checkpoint",
    )

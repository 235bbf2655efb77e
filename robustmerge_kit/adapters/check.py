"""Checks that need the numbers, done while they stream by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import torch


def check_values(where: str, tensor: torch.Tensor) -> bool:
    """Refuse NaN and infinity; True when every value is zero. `where` names file and tensor.

    Raises: InputError with the number of such values.
    """
    import torch

    if tensor.numel() == 0 or not tensor.is_floating_point():
        return False
    low, high = (float(bound) for bound in torch.aminmax(tensor))
    if math.isfinite(low) and math.isfinite(high):
        return low == 0 == high
    count = int(tensor.numel() - torch.isfinite(tensor).sum())
    raise InputError(
        f"holds NaN/Inf ({count} values)",
        where=where,
        hint="the training diverged or the file is damaged; use an earlier checkpoint",
    )

"""What a configuration says of ranks and scales: alpha from a scale, one setting for most modules, patterns for the rest."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..adapters import SiteFactors
from ..adapters.config import read_scaling
from ..errors import InputError
from ..output.config import exactly


def alpha_of(scale: float, rank: int) -> float:
    """The alpha with alpha / rank == scale; of several such numbers the roundest, so that trips through layouts are exact.

    Where rounding leaves no such number, the nearest one.
    """
    near = scale * rank
    around = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    candidates = [*(_as_float32(value) for value in around), *around]
    return next((value for value in candidates if value / rank == scale), near)


def is_float32(value: float) -> bool:
    """Whether a number keeps its value as float32."""
    return _as_float32(value) == value


def settings(modules: Mapping[str, SiteFactors]) -> dict[str, Any]:
    """PEFT's `r`, `lora_alpha` and patterns: the most frequent values, and exceptions by full module name."""
    ranks = {path: factors.rank for path, factors in modules.items()}
    alphas = {path: alpha_of(factors.scale, factors.rank) for path, factors in modules.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": whole(alpha),
        "rank_pattern": {exactly(path): value for path, value in sorted(ranks.items()) if value != rank},
        "alpha_pattern": {exactly(path): whole(value) for path, value in sorted(alphas.items()) if value != alpha},
        "use_rslora": False,
    }


def describes(config: Mapping[str, Any], modules: Mapping[str, SiteFactors]) -> bool:
    """Whether a PEFT configuration gives every module the rank and the scale it has."""
    try:
        scaling = read_scaling(config, "", None, [])
    except InputError:
        return False
    return all(
        scaling.announced(path) == factors.rank and scaling.scale(path, factors.rank) == factors.scale
        for path, factors in modules.items()
    )


def whole(value: float) -> float:
    """A number as people write it: 16, not 16.0."""
    return int(value) if value.is_integer() else value


def _as_float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0] if abs(value) < 3e38 else value

"""The recipe of one method's row: the settings that methods cannot do without, the same in every table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dense_sides import DENSITY

from robustmerge_kit.method import Method

SETTINGS = {"density": DENSITY, "t": 0.5}


def row(method: Method, folders: Sequence[Path], space: Any, rank: int | str) -> dict[str, Any]:
    """As many of the adapters as the method takes, in a space or in none."""
    known = method.params.model_fields
    return {
        "merge_method": method.name,
        "adapters": [str(folder) for folder in folders[: method.adapters[1]]],
        "parameters": {name: value for name, value in SETTINGS.items() if name in known},
        "output": {"rank": rank},
        **({"space": space} if space else {}),
    }

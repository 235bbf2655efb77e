"""What is merged: every method with its grid, read from settings.yaml."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

SETTINGS = Path(__file__).with_name("settings.yaml")


@dataclass(frozen=True)
class Setting:
    """One way to merge; `rank` None keeps all of the merged delta."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    space: str | None = None
    rank: int | None = None
    pre: tuple[Any, ...] = ()
    post: tuple[Any, ...] = ()

    @property
    def key(self) -> str:
        """The setting as one line, the same for equal settings."""
        content = {"method": self.method, "parameters": dict(self.parameters), "space": self.space, "rank": self.rank}
        steps = {name: value for name, value in (("pre", self.pre), ("post", self.post)) if value}
        return json.dumps(content | steps, sort_keys=True)

    @property
    def words(self) -> str:
        """The setting as a reader wants it, without the method's name."""
        parts = [f"{name} {_plain(value)}" for name, value in self.parameters.items()]
        steps = [next(iter(step)) if isinstance(step, dict) else str(step) for step in (*self.pre, *self.post)]
        return ", ".join([*([f"space {self.space}"] if self.space else []), *parts, *steps]) or "defaults"

    def cut(self, rank: int | None) -> Setting:
        """The same setting with another rank."""
        return replace(self, rank=rank)


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else f"{value:g}" if isinstance(value, int | float) else str(value)


@dataclass(frozen=True)
class Row:
    """A row of the table: the method's untuned setting, and the settings one is chosen of."""

    name: str
    default: Setting
    candidates: tuple[Setting, ...]
    rank_16: bool = True
    """Whether cutting to rank 16 gives another result than the row itself."""


def read_rows(modality: str, path: Path = SETTINGS) -> list[Row]:
    """Every row of the settings file, in its order, with the grid of a modality."""
    return [_row(name, entry or {}, modality) for name, entry in YAML(typ="safe").load(path.read_text())["rows"].items()]


def _row(name: str, entry: Mapping[str, Any], modality: str) -> Row:
    fixed = {
        "method": entry.get("method", name),
        "space": entry.get("space"),
        "pre": tuple(entry.get("pre", ())),
        "post": tuple(entry.get("post", ())),
    }
    default = Setting(parameters=entry.get("default", {}), **fixed)
    grid: Mapping[str, list[Any]] = entry.get(modality, entry.get("grid", {}))
    values = itertools.product(*grid.values())
    base = entry.get("fixed", {})
    tried = [Setting(parameters=base | dict(zip(grid, each, strict=True)), **fixed) for each in values] if grid else []
    by_key = {setting.key: setting for setting in (default, *tried)}
    return Row(name, default, tuple(by_key.values()), entry.get("rank_16", True))

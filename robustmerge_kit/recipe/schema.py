"""The recipe: every key a user can type, with its type, range and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

Scalar = float | int | bool | str
Space = Literal["full", "core", "knots", "ctm", "factor"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=False)


class Filtered(_Strict):
    """One line of a filter list: the value for tensors whose name contains `filter`; without `filter`, for all others."""

    filter: str | None = None
    value: Scalar | list[float]


Value = Scalar | list[float] | list[Filtered]
"""A scalar, a gradient over the layers (numbers, interpolated linearly), or a filter list (first match wins)."""

SpaceChoice = Space | dict[Space, dict[str, Any]]
"""A space by name, or with its options: {ctm: {rank: 16}}."""

Step = dict[str, dict[str, Any]] | str
"""A transform by name, or with its parameters: {norm_balance: {beta: 0.25}}."""


class AdapterEntry(_Strict):
    """One input."""

    adapter: str
    name: str | None = None
    adapter_name: str | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    alpha: float | None = None
    parameters: dict[str, Value] = Field(default_factory=dict)


class Override(_Strict):
    """Other settings for the sites whose module path matches the glob; the first override that matches wins."""

    match: str
    merge_method: str | None = None
    space: SpaceChoice | None = None
    parameters: dict[str, Value] = Field(default_factory=dict)


class EnergyRank(_Strict):
    energy: Annotated[float, Field(gt=0, le=1)]


class Budget(_Strict):
    average: Annotated[float, Field(gt=0)]
    score: Literal["relative", "absolute"] = "relative"
    cost: Literal["rank", "params"] = "rank"
    cap: Annotated[int, Field(ge=1)] | None = None


class BudgetRank(_Strict):
    budget: Budget


RankRule = Literal["auto", "sum", "max"] | Annotated[int, Field(ge=1)] | EnergyRank | BudgetRank


class Output(_Strict):
    """What is written."""

    kind: Literal["adapter", "model"] = "adapter"
    path: str | None = None
    rank: RankRule = "auto"
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    format: Literal["peft", "llava", "same"] = "peft"
    weights: Literal["safetensors", "bin"] | None = None
    for_: Literal["peft", "vllm", "sglang", "tgi", "gguf"] | None = Field(default=None, alias="for")
    uniform: bool = True
    allow_arbitrary_truncation: bool = False


class FirstOf(_Strict):
    first: str


class Recipe(_Strict):
    """A merge, fully described: recipe plus inputs determine the result."""

    merge_method: str
    adapters: Annotated[tuple[AdapterEntry, ...], Field(min_length=1)]
    parameters: dict[str, Value] = Field(default_factory=dict)
    space: SpaceChoice | None = None
    overrides: tuple[Override, ...] = ()
    pre: tuple[Step, ...] = ()
    post: tuple[Step, ...] = ()
    base_model: str | None = None
    seed: int = 0
    missing: Literal["error", "zero", "renormalize"] = "error"
    extras: Literal["mean", "first", "drop", "error"] | FirstOf = "error"
    allow: tuple[Literal["unmatched", "modified_init"], ...] = ()
    output: Output = Field(default_factory=Output)
    name: str | None = None
    meta: dict[str, Any] | str | None = None

    _text: str = PrivateAttr(default="")
    _path: Path | None = PrivateAttr(default=None)

    @property
    def text(self) -> str:
        """The recipe as it was written, byte for byte; what `rmkit_recipe.yaml` holds."""
        return self._text

    @property
    def place(self) -> Path:
        """The folder relative paths start from: the recipe file's, else the working folder."""
        return self._path.parent if self._path else Path.cwd()

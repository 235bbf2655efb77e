"""The recipe: every key a user can type, with its type, range and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, PrivateAttr, Tag, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from .origin import Origin
from .strict import Strict, Text, one_of
from .sweep import Sweep

if TYPE_CHECKING:
    from .search import Search

Scalar = float | int | bool | str
Space = Literal["full", "core", "knots", "ctm", "factor"]


VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Gradient = Annotated[list[float], Field(min_length=1)]


class Filtered(Strict):
    """One line of a filter list: the value for the tensors it describes; a line that describes none is for all others."""

    filter: str | None = Field(default=None, description="Text that the name of the tensor must contain; left out: any name.")
    layers: tuple[int, int] | None = Field(
        default=None,
        strict=False,
        description="First layer and the layer after the last one, [0, 16]; a gradient in `value` then runs over these layers.",
    )
    value: Annotated[
        Annotated[Scalar, Tag("<scalar>")] | Annotated[Gradient, Tag("<gradient>")],
        one_of(scalar="a number, true or false, text", gradient="a list of numbers"),
    ] = Field(description="The value: a scalar, or a gradient over the layers.")


Value = Annotated[
    Annotated[Scalar, Tag("<scalar>")]
    | Annotated[Gradient, Tag("<gradient>")]
    | Annotated[list[Filtered], Field(min_length=1), Tag("<filters>")],
    one_of(scalar="a number, true or false, text", gradient="a list of numbers", filters="a list of {filter, value}"),
]
"""A scalar, a gradient over the layers (numbers, interpolated linearly), or a filter list (first match wins)."""

Parameters = dict[str, Value]


class CoreOptions(Strict):
    """Options of `space: core`."""

    basis: Literal["factors", "deltas"] = Field(
        default="factors", description="Where the common basis comes from: the factors (as published) or the deltas."
    )


class CtmOptions(Strict):
    """Options of `space: ctm`."""

    rank: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Rank of the common basis; default: the largest."
    )
    beta: Annotated[float, Field(ge=0, le=1)] = Field(default=0.25, description="Balance of norms: 1 none, 0 all equal.")
    tol: Annotated[float, Field(gt=0)] = Field(default=1e-6, description="Stop when a sweep changes the error by less.")
    max_iter: Annotated[int, Field(ge=1, le=100_000)] = Field(default=1000, description="Largest number of sweeps.")


class NoOptions(Strict):
    """A space without options."""


SPACE_OPTIONS: dict[str, type[Strict]] = {
    "full": NoOptions,
    "core": CoreOptions,
    "knots": NoOptions,
    "ctm": CtmOptions,
    "factor": NoOptions,
}

SpaceChoice = Annotated[
    Annotated[Space, Tag("<name>")]
    | Annotated[dict[Space, dict[str, Any]], Field(min_length=1, max_length=1), Tag("<options>")],
    one_of(name="the name of a space", options="{name: {option: value}}"),
]
"""A space by name, or with its options: {ctm: {rank: 16}}."""

Step = Annotated[
    Annotated[Text, Tag("<name>")] | Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1), Tag("<options>")],
    one_of(name="the name of a step", options="{name: {parameter: value}}"),
]
"""A transform by name, or with its parameters: {norm_balance: {beta: 0.25}}."""


class AdapterEntry(Strict):
    """One input; its short form is the reference alone."""

    adapter: Text = Field(
        description="Folder relative to this file, or org/name[@revision][:subfolder] on the Hub.",
        examples=["adapters/iconqa", "org/name@main"],
    )
    name: Text | None = Field(default=None, description="Its name in messages, in the card and for `extras: {first: NAME}`.")
    adapter_name: Text | None = Field(
        default=None, description="Which adapter to take from a file that holds several, by the name inside its keys."
    )
    rename: dict[str, str] = Field(
        default_factory=dict,
        description="Beginnings of module names to replace, {old: new}, where inputs name modules differently.",
    )
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="lora_alpha, for files without a configuration that says it."
    )
    expert_axes: Literal["out_in", "in_out"] | None = Field(
        default=None,
        description="Fused experts: the axes of the parameter, [E, out, in] or [E, in, out], where the files do not tell.",
    )
    expert_layout: Literal["peft", "unsloth"] | None = Field(
        default=None,
        description="Fused experts: who ordered the columns of B, PEFT (rank after rank, the default) or Unsloth (expert after "
        "expert).",
    )
    parameters: Parameters = Field(
        default_factory=dict,
        description="Parameters of this input: weight (default 1), and those the method takes per adapter; they win over the "
        "recipe's `parameters`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        return {"adapter": data} if isinstance(data, str) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        full = handler.resolve_ref_schema(handler(core_schema))
        short = {"type": "string", "minLength": 1, "description": "The reference alone."}
        return {"title": cls.__name__, "anyOf": [short, full]}


class Override(Strict):
    """Other settings for the sites whose module path matches the glob; the first override that matches wins."""

    match: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        description="Glob over the whole module path, case-sensitive.", examples=["*.mlp.*"]
    )
    merge_method: Text | None = Field(default=None, description="Method for these sites.")
    space: SpaceChoice | None = Field(default=None, description="Space for these sites; element-wise methods only.")
    parameters: Parameters = Field(
        default_factory=dict,
        description="Parameters for these sites; they win over the adapters' and the recipe's, key by key.",
    )


class EnergyRank(Strict):
    """The smallest rank that keeps this share of the squared norm, per site."""

    energy: Annotated[float, Field(gt=0, le=1)] = Field(description="Share of the squared norm to keep, in (0, 1].")


class Budget(Strict):
    """A total rank, spent where it keeps most."""

    average: Annotated[float, Field(gt=0)] = Field(description="Rank per site on average.")
    score: Literal["relative", "absolute"] = Field(
        default="relative", description="What is kept: energy relative to the site's own, or absolute."
    )
    cost: Literal["rank", "params"] = Field(default="rank", description="What is spent: ranks, or parameters.")
    cap: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Largest rank of one site.")


class BudgetRank(Strict):
    """Ranks by a budget over all sites."""

    budget: Budget = Field(description="The budget.")


RankRule = Annotated[
    Annotated[Literal["auto", "sum", "max"], Tag("<name>")]
    | Annotated[int, Field(ge=1), Tag("<number>")]
    | Annotated[EnergyRank, Tag("<energy>")]
    | Annotated[BudgetRank, Tag("<budget>")],
    one_of(name="auto, sum, max", number="a whole number", energy="{energy: 0.99}", budget="{budget: {average: 16}}"),
]


class Output(Strict):
    """What is written."""

    kind: Literal["adapter", "model"] = Field(default="adapter", description="A merged adapter, or the base with it folded in.")
    path: Text | None = Field(
        default=None, description="Folder to write, relative to this file; OUT on the command line wins over it."
    )
    rank: RankRule = Field(
        default="auto",
        description="Rank of the result: auto (the method's own), sum or max of the inputs' ranks, a number, {energy: 0.99} "
        "or {budget: {average: 16}}.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None,
        description="Type of the written numbers; default: the inputs' own. Arithmetic is float32 or better always.",
    )
    format: Literal["peft", "llava", "same"] = Field(
        default="peft", description="Layout: PEFT, the folder LLaVA's evaluation loads, or the same as the inputs'."
    )
    weights: Literal["safetensors", "bin"] | None = Field(
        default=None, description="Kind of weights file; default: what the format is known by."
    )
    for_: Literal["peft", "vllm", "sglang", "tgi", "gguf"] | None = Field(
        default=None, alias="for", description="Program that will serve the result; its limits are checked when planning."
    )
    uniform: bool = Field(default=True, description="One rank for all sites; false (only with for: peft) writes rank_pattern.")
    allow_arbitrary_truncation: bool = Field(
        default=False, description="Cut the rank even where the spectrum is flat, so that what survives is arbitrary."
    )


class FirstOf(Strict):
    """Take the tensors of one named adapter."""

    first: Text = Field(description="Name of the adapter.")


Extras = Annotated[
    Annotated[Literal["mean", "first", "drop", "error"], Tag("<name>")] | Annotated[FirstOf, Tag("<first>")],
    one_of(name="mean, first, drop, error", first="{first: NAME}"),
]


class Settings(Strict):
    """Keys that rmkit's own recipes and mergekit's share."""

    merge_method: Text = Field(description="Method that merges every site no override changes; `rmkit methods` lists them.")
    parameters: Parameters = Field(
        default_factory=dict,
        description="Parameters of the method for all adapters; `rmkit methods NAME` explains them. A value is a scalar, a "
        "gradient over the layers [first, .., last], or a filter list [{filter: text, value: v}, .., {value: v}].",
    )
    space: SpaceChoice | None = Field(
        default=None, description="Where an element-wise method runs: full (default), core, knots, ctm or factor."
    )
    overrides: tuple[Override, ...] = Field(
        default=(),
        strict=False,
        max_length=1000,
        description="Other settings for some sites; the first glob that matches wins.",
    )
    pre: tuple[Step, ...] = Field(
        default=(),
        strict=False,
        description="Steps before the method, in order, for all sites: [{norm_balance: {beta: 0.25}}].",
    )
    post: tuple[Step, ...] = Field(
        default=(),
        strict=False,
        description="Steps after the method, in order, for all sites: [{rescale_output: {to: mean_norm}}].",
    )
    base_model: Text | None = Field(
        default=None, description="The base, as folder or org/name; needed to fold, and for inputs that depend on it."
    )
    seed: int = Field(default=0, description="Seed of methods that draw random numbers.")
    missing: Literal["error", "zero", "renormalize"] = Field(
        default="error",
        description="A site that only some adapters have: error, zero (their delta is zero) or renormalize (not counted).",
    )
    extras: Extras = Field(
        default="error",
        description="Tensors outside LoRA that differ (heads, projectors): mean, first, {first: NAME}, drop or error.",
    )
    allow: tuple[Literal["unmatched", "modified_init", "links"], ...] = Field(
        default=(),
        strict=False,
        description="Known dangers to accept: unmatched names, adapters whose base was modified at init, "
        "files of adapters that are links out of their folder.",
    )
    dora: Literal["delta"] | None = Field(
        default=None,
        description="DoRA inputs: delta merges what each one changes in the weights of base_model; needed for adapter output.",
    )
    output: Output = Field(default_factory=Output, description="What is written, and where.")
    name: Text | None = Field(default=None, description="Name of the merge, for the card.")
    meta: dict[str, Any] | str | None = Field(default=None, description="Text or keys for the card.")
    extends: Text | None = Field(
        default=None,
        description="A recipe to build on, whose values count where this one has none: a path relative to this file, "
        "org/name[@revision]:path on the Hub, https://.., or git+https://..[@revision]:path.",
    )
    vars: dict[VariableName, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="Values by name, {density: 0.2}, used as <density>; --set density=0.3 replaces one, and keeps its type.",
    )


class Recipe(Settings):
    """A merge, fully described: recipe plus inputs determine the result."""

    adapters: tuple[AdapterEntry, ...] = Field(
        min_length=1, strict=False, description="The inputs: references, or mappings with `adapter` and settings of its own."
    )

    sweep: Sweep | None = Field(
        default=None, description="Values to try and what scores them; `rmkit sweep` runs it, `rmkit run` refuses it."
    )

    _origin: Origin = PrivateAttr(default_factory=Origin)

    def remember(self, origin: Origin) -> None:
        """Keep where the recipe came from; it changes no number."""
        self._origin = origin

    @property
    def origin(self) -> Origin:
        """Where the recipe came from: its files, and what it was taken at."""
        return self._origin

    @property
    def search(self) -> Search | None:
        """What the trials of its sweep draw; None without a sweep."""
        return self._origin.search

    @property
    def text(self) -> str:
        """The recipe as it was written, byte for byte; written out as a whole where it needed other files or variables.

        `rmkit_recipe.yaml` holds it.
        """
        return self._origin.text

    @property
    def place(self) -> Path:
        """The folder relative paths start from: the recipe file's, else the working folder."""
        return self._origin.place or Path.cwd()

    @property
    def needs_base(self) -> bool:
        """Whether the result depends on the base's weights."""
        return self.output.kind == "model" or self.dora == "delta"

    @property
    def title(self) -> str:
        """The recipe's `name`, else its file's, without a suffix."""
        return self.name or self._origin.stem

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user must be told once: how a recipe in mergekit's form was read."""
        return self._origin.notes

    @property
    def depth(self) -> int | None:
        """Number of layers, where the recipe says it by ranges of layers; None for any number."""
        return self._origin.depth

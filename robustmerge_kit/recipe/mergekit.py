"""mergekit's form of a recipe (`models:` or `slices:` of `base+lora`) -> the data of one of ours, with mergekit's defaults.

Layer ranges become filter lists with `layers`; what would restack layers, merge vocabularies or whole models is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import Field, ValidationError

from ..errors import RmkitError
from .mergekit_slices import Parameters, flatten
from .problems import Problems
from .references import Reference, holds_full_model, same_base, split
from .schema import Settings, Strict, Text, Value
from .values import method_named
from .yaml_text import Path

_ONLY_HERE = ("models", "slices", "modules")
_NO_SLICES = "rmkit runs module by module; it does not restack layers"
_TOKENIZER = "vocabularies are not merged; all adapters must share the base's tokenizer"

DEFAULTS: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True},
    "task_arithmetic": {"normalize": False, "gain": 1.0},
    "ties": {"normalize": True, "density": 1.0, "gain": 1.0, "trim": "topk"},
    "dare_linear": {"normalize": False, "rescale": "l1", "density": 1.0, "gain": 1.0},
    "dare_ties": {"normalize": False, "rescale": "l1", "density": 1.0, "gain": 1.0},
    "breadcrumbs": {"normalize": False, "density": 1.0, "gamma": 0.01, "gain": 1.0},
    "breadcrumbs_ties": {"normalize": False, "density": 1.0, "gamma": 0.01, "gain": 1.0},
    "della": {"normalize": True, "rescale": "l1", "density": 1.0, "epsilon": 0.15, "gain": 1.0},
    "della_linear": {"normalize": False, "rescale": "l1", "density": 1.0, "epsilon": 0.15, "gain": 1.0},
    "sce": {"density": 1.0},
    "model_stock": {"filter_wise": False},
    "multislerp": {"normalize_weights": True},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "slerp": {},
    "nuslerp": {},
}
"""Defaults of mergekit 0.1.5 by method, in our names."""

_WITHOUT_WEIGHT = {"sce", "model_stock", "karcher", "slerp"}
_RENAMED = {"lambda": "gain", "select_topk": "density"}
_RESCALED = {True: "l1", False: "none"}
_NO_EFFECT: dict[tuple[str, str], tuple[Any, ...]] = {
    ("task_arithmetic", "density"): (),
    ("task_arithmetic", "rescale"): (),
    ("ties", "rescale"): (False,),
    ("breadcrumbs", "rescale"): (False,),
    ("breadcrumbs_ties", "rescale"): (False,),
    ("nuslerp", "nuslerp_row_wise"): (False,),
    ("nuslerp", "nuslerp_flatten"): (True,),
}
"""Parameters that change nothing in mergekit: for the values listed, or for all where none is."""

_ON_WHOLE_WEIGHTS = ("slerp", "multislerp", "karcher")


class Model(Strict):
    """One input of mergekit's form."""

    model: Text = Field(description="base+lora, the base itself, or an adapter alone.")
    parameters: dict[str, Value] = Field(default_factory=dict, description="Parameters of this input.")


class Source(Model):
    """One input of a slice."""

    layer_range: tuple[int, int] = Field(strict=False, description="First layer and the layer after the last.")


class Slice(Strict):
    """Settings for a range of layers; all sources must have the same range."""

    sources: tuple[Source, ...] = Field(min_length=1, strict=False, description="The inputs, the same in every slice.")
    parameters: dict[str, Value] = Field(default_factory=dict, description="Parameters of these layers.")


class Tokenizer(Strict):
    """Where the tokenizer comes from."""

    source: str | None = Field(default=None, description="Only `base`.")
    tokens: dict[str, Any] | None = Field(default=None, description="Not available: vocabularies are not merged.")
    pad_to_multiple_of: int | None = Field(default=None, description="Not available: vocabularies are not changed.")


class MergekitRecipe(Settings):
    """A recipe in mergekit's form."""

    models: tuple[Model, ...] | None = Field(default=None, min_length=1, strict=False, description="The inputs.")
    slices: tuple[Slice, ...] | None = Field(
        default=None, min_length=1, strict=False, description="The inputs by ranges of layers; all layers, in order."
    )
    dtype: Text | None = Field(default=None, description="The same as output.dtype; arithmetic is float32 or better always.")
    out_dtype: Text | None = Field(default=None, description="The same as output.dtype; wins over dtype.")
    tokenizer_source: str | None = Field(default=None, description="Only `base`.")
    tokenizer: Tokenizer | None = Field(default=None, description="Only {source: base}.")
    chat_template: str | None = Field(default=None, description="Ignored: an adapter has none.")


def refuse_both_forms(data: dict[str, Any], problems: Problems) -> None:
    """Note and take away mergekit's inputs beside `adapters`."""
    for key in _ONLY_HERE if "adapters" in data else ():
        if key in data:
            problems.add((key,), f"{key} and adapters cannot stand in one recipe", hint="keep one of them", at_key=True)
            del data[key]


def is_mergekit(data: Mapping[str, Any]) -> bool:
    """Whether a recipe is written in mergekit's form."""
    return any(key in data for key in _ONLY_HERE) and "adapters" not in data


@dataclass(frozen=True)
class Translated:
    """The data of a recipe of ours, what the user must be told, and the number of layers where ranges of layers say it."""

    data: dict[str, Any]
    notes: tuple[str, ...]
    depth: int | None


def translate(data: Mapping[str, Any], problems: Problems, place: FilePath) -> Translated | None:
    """Our data for mergekit's; None when `problems` say why there is none."""
    before = len(problems)
    tidy: dict[str, Any] = _tidy(data)
    _refuse_what_adapters_lack(tidy, problems)
    tidy.pop("modules", None)
    try:
        MergekitRecipe.model_validate(tidy)
    except ValidationError as error:
        problems.add_invalid(error, tidy, MergekitRecipe)
    if len(problems) > before:
        return None
    translated = _Translation(tidy, problems, place).run()
    return None if len(problems) > before else translated


def _tidy(value: Any) -> Any:
    """Without keys that have no value, and with a single {filter, value} as the list it stands for."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    tidy = {key: _tidy(item) for key, item in value.items() if item is not None}
    parameters = tidy.get("parameters")
    if isinstance(parameters, dict):
        tidy["parameters"] = {key: [item] if isinstance(item, dict) else item for key, item in parameters.items()}
    return tidy


def _refuse_what_adapters_lack(data: Mapping[str, Any], problems: Problems) -> None:
    if "modules" in data:
        problems.add(("modules",), "give base_model once; module names come from the checkpoint", at_key=True)
    elif ("models" in data) == ("slices" in data):
        problems.add(("slices",), "give either models or slices, not both", at_key=True)
    tokenizer = data.get("tokenizer", {})
    source = tokenizer.get("source", "base") if isinstance(tokenizer, dict) else "base"
    for path, value in ((("tokenizer_source",), data.get("tokenizer_source", "base")), (("tokenizer", "source"), source)):
        if isinstance(value, str) and value != "base":
            problems.add(path, f"{_TOKENIZER}, got {value!r}", hint=f"write {path[-1]}: base, or delete it")
    for key in ("tokens", "pad_to_multiple_of"):
        if isinstance(tokenizer, dict) and key in tokenizer:
            problems.add(("tokenizer", key), _TOKENIZER, hint=f"delete {key}", at_key=True)


class _Translation:
    """One recipe on its way from mergekit's form to ours."""

    def __init__(self, data: Mapping[str, Any], problems: Problems, place: FilePath) -> None:
        self.data = data
        self.problems = problems
        self.place = place
        self.method: str = data["merge_method"]
        self.notes: list[str] = []

    def run(self) -> Translated:
        models, shared, depth = self._inputs()
        base, inputs, bases = self._sort_out([(model["model"], path) for model, path in models])
        kept = {
            key: value
            for key, value in self.data.items()
            if key
            not in ("models", "slices", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "parameters")
        }
        common = self._parameters(shared, ("parameters",), ("parameters",))
        adapters: list[dict[str, Any]] = []
        for number, reference in inputs:
            model, path = models[number]
            at = len(adapters)
            self.problems.origin[("adapters", at)] = path
            self.problems.origin[("adapters", at, "adapter")] = (*path, "model")
            own = self._parameters(model.get("parameters", {}), ("adapters", at, "parameters"), (*path, "parameters"))
            adapters.append({"adapter": reference, **({"parameters": own} if own else {})})
            if self.method in DEFAULTS and self.method not in _WITHOUT_WEIGHT and "weight" not in {**own, **common}:
                hint = "add parameters: {weight: 1.0} to each model, or to the recipe"
                self.problems.add(path, f"{self.method} needs a weight for {model['model']!r}", hint=hint)
        self.problems.origin[("adapters",)] = ("models",) if "models" in self.data else ("slices",)
        self._count_the_base([models[number] for number in bases], adapters, common)
        self._default(common)
        kind = self.data.get("output", {}).get("kind") or ("adapter" if base is None else "model")
        self._tell(kind)
        result = {**kept, "adapters": adapters, "parameters": common, "output": {**self._output(), "kind": kind}}
        if base is not None:
            result["base_model"] = base
        return Translated(result, tuple(self.notes), depth)

    def _inputs(self) -> tuple[list[tuple[Mapping[str, Any], Path]], Parameters, int | None]:
        """The models with their places, the parameters of all of them, and the number of layers where ranges say it."""
        shared = self.data.get("parameters", {})
        if "models" in self.data:
            return [(model, ("models", i)) for i, model in enumerate(self.data["models"])], shared, None
        slices: list[Mapping[str, Any]] = self.data["slices"]
        named = [[source["model"] for source in each["sources"]] for each in slices]
        end = 0
        for i, each in enumerate(slices):
            ranges = [source["layer_range"] for source in each["sources"]]
            if named[i] != named[0] or any(r != ranges[0] for r in ranges) or ranges[0][0] != end or ranges[0][1] <= end:
                hint = "give the same models in every slice, with one layer_range each, from 0 on and without gaps"
                self.problems.add(("slices", i), _NO_SLICES, hint=hint)
                return [], {}, None
            end = ranges[0][1]
        try:
            models, shared = flatten(slices, shared, self._mergekit_default)
        except RmkitError as error:
            self.problems.add_error(("slices",), error)
            return [], {}, None
        return [(model, ("slices", 0, "sources", i)) for i, model in enumerate(models)], shared, end

    def _mergekit_default(self, name: str) -> Any:
        default = DEFAULTS.get(self.method, {}).get(_RENAMED.get(name, name))
        return {"l1": True, "none": False}.get(default, default) if isinstance(default, str) else default

    def _sort_out(self, references: list[tuple[str, Path]]) -> tuple[str | None, list[tuple[int, str]], list[int]]:
        """The base, the adapters with their number among the models, the numbers of the base itself; mistakes are noted."""
        told = self.data.get("base_model")
        whole: Reference | None = None
        try:
            whole = split(told, None, self.place) if told else None
            parts = [split(text, whole and (whole.base or whole.alone), self.place) for text, _ in references]
        except RmkitError as error:
            path = next((path for text, path in references if repr(text) in error.what), ("base_model",))
            self.problems.add_error((*path, "model") if path != ("base_model",) else path, error)
            return None, [], []
        base = (whole.base or whole.alone) if whole else next((part.base for part in parts if part.base), None)
        inputs: list[tuple[int, str]] = []
        bases: list[int] = []
        for number, ((text, path), part) in enumerate(zip(references, parts, strict=True)):
            at = (*path, "model")
            if part.base is not None and not same_base(part.base, base, self.place):
                what = f"the base of {text!r} is not {'base_model' if told else 'the base of the first model'} ({base})"
                self.problems.add(at, what, hint="adapters can only be merged on one base")
            elif part.adapter is not None:
                inputs.append((number, part.adapter))
            elif part.alone is not None and not same_base(part.alone, base, self.place):
                if holds_full_model(part.alone, self.place):
                    hint = "extract a LoRA first (mergekit-extract-lora), or use mergekit"
                    self.problems.add(at, f"input {number + 1} is a full model ({part.alone})", hint=hint)
                inputs.append((number, part.alone))
            else:
                bases.append(number)
        if whole and whole.adapter is not None and self.method not in ("linear", "karcher"):
            self._start_from(told or "", references, inputs)
        return base, inputs, bases

    def _start_from(self, told: str, references: list[tuple[str, Path]], inputs: list[tuple[int, str]]) -> None:
        """Mergekit's slerp names its first model in base_model; elsewhere a base with an adapter means other deltas."""
        number = next((i for i, (text, _) in enumerate(references) if text == told), None)
        if self.method == "slerp" and number is not None:
            inputs.sort(key=lambda item: item[0] != number)
            return
        what = f"base_model {told!r} carries an adapter, so {self.method} would merge differences of adapters"
        self.problems.add(("base_model",), what, hint="give the plain base as base_model")

    def _parameters(self, given: Parameters, path: Path, source: Path) -> dict[str, Any]:
        """Parameters under our names and values; what has no effect is left out, with a note."""
        ours: dict[str, Any] = {}
        for name, value in given.items():
            if name == "int8_mask" or self._idle(name, value):
                note = f"{name} has no effect with {self.method} and is left out"
                if name != "int8_mask" and note not in self.notes:
                    self.notes.append(note)
                continue
            new = _RENAMED.get(name, name)
            self.problems.origin[(*path, new)] = (*source, name)
            ours[new] = _rescaled(value) if name == "rescale" else value
        return ours

    def _idle(self, name: str, value: Any) -> bool:
        values = _NO_EFFECT.get((self.method, name))
        return values is not None and (not values or (not isinstance(value, list) and value in values))

    def _count_the_base(
        self, bases: list[tuple[Mapping[str, Any], Path]], adapters: list[dict[str, Any]], common: dict[str, Any]
    ) -> None:
        """Linear and karcher count every model, the base too: a zero delta that takes its share of the mean."""
        if self.method == "karcher" and bases:
            self.problems.add(bases[0][1], "karcher would count the base as an input", hint="remove the base from models")
        if self.method != "linear":
            return
        weights = [entry.get("parameters", {}).get("weight", common.get("weight")) for entry in adapters]
        spare = [model.get("parameters", {}).get("weight", common.get("weight")) for model, _ in bases]
        numbers = all(isinstance(w, int | float) for w in (*weights, *spare))
        total, beside = (sum(weights), sum(spare)) if numbers else (0.0, 0.0)
        if common.get("normalize", True) is not True:
            if not numbers or abs(total + beside - 1) > 1e-6:
                what = "linear with normalize: false scales the base by the sum of the weights, which an adapter cannot express"
                path = ("parameters", "normalize")
                self.problems.add(path, what, hint="use weights that sum to 1, normalize: true, or task_arithmetic")
        elif bases and (not numbers or total + beside == 0):
            what = "linear counts the base as a model, which needs one number as the weight of every model"
            self.problems.add(bases[0][1], what, hint="remove the base from models, or use task_arithmetic")
        elif bases and beside:
            common["gain"] = total / (total + beside)
            self.notes.append(
                f"linear counts the base as a model with a zero delta: the mean is scaled by {common['gain']:.6g}"
            )

    def _default(self, common: dict[str, Any]) -> None:
        """Mergekit's defaults where the recipe is silent, also behind filter lists that do not cover everything."""
        try:
            fields = method_named(self.method).params.model_fields
        except RmkitError:
            return
        for name, value in DEFAULTS.get(self.method, {}).items():
            given = common.get(name)
            if name in fields and given is None:
                common[name] = value
            elif isinstance(given, list) and all(
                isinstance(line, dict) and {"filter", "layers"} & line.keys() for line in given
            ):
                common[name] = [*given, {"value": value}]

    def _output(self) -> dict[str, Any]:
        output = dict(self.data.get("output", {}))
        given = {key: self.data[key].removeprefix("torch.") for key in ("dtype", "out_dtype") if key in self.data}
        if not given:
            return output
        key = "out_dtype" if "out_dtype" in given else "dtype"
        if len(set(given.values())) == 2:
            self.notes.append(f"out_dtype {given['out_dtype']} wins over dtype {given['dtype']}")
        if output.get("dtype", given[key]) != given[key]:
            what = f"{key} {given[key]} contradicts output.dtype {output['dtype']}"
            self.problems.add((key,), what, hint="keep one of them")
        if "dtype" not in output:
            self.problems.origin[("output", "dtype")] = (key,)
        return {**output, "dtype": given[key]}

    def _tell(self, kind: str) -> None:
        if kind == "adapter":
            self.notes.append("the result is an adapter; mergekit would write a whole model")
        if self.method in _ON_WHOLE_WEIGHTS:
            self.notes.append(f"{self.method} acts on the adapters' deltas here, on whole weights in mergekit")
        if self.method.startswith(("dare", "della")):
            self.notes.append("random masks differ from mergekit's, since the generator is rmkit's own")
        if "chat_template" in self.data:
            self.notes.append("chat_template is ignored: a model keeps its base's, an adapter has none")


def _rescaled(value: Any) -> Any:
    if isinstance(value, bool):
        return _RESCALED[value]
    if isinstance(value, list):
        return [{**line, "value": _rescaled(line["value"])} if isinstance(line, dict) else line for line in value]
    return value

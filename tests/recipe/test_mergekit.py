"""Recipes in mergekit's form: what they become, what is refused, and mergekit's own parser as the judge of values."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from robustmerge_kit.errors import RmkitError
from robustmerge_kit.recipe import Recipe, count_layers, effective_settings, parse_recipe
from robustmerge_kit.recipe.references import Reference, split

HEAD = "merge_method: task_arithmetic\nbase_model: org/base\n"
TWO = "models:\n  - {model: org/base+org/x, parameters: {weight: 0.5}}\n  - {model: org/base+y, parameters: {weight: 1}}\n"


def test_the_usual_form() -> None:
    recipe = parse_recipe(
        "merge_method: ties\nbase_model: org/base\nmodels:\n  - model: org/base\n"
        "  - {model: org/base+org/x@main, parameters: {weight: 0.5, density: 0.3}}\n"
        "  - {model: org/y, parameters: {weight: {value: 2}}}\n"
        "parameters: {lambda: 0.7, int8_mask: true}\ndtype: float32\nout_dtype: bfloat16\ntokenizer: {source: base}\n"
    )
    assert [entry.adapter for entry in recipe.adapters] == ["org/x@main", "org/y"]
    assert recipe.base_model == "org/base"
    assert recipe.parameters == {"gain": 0.7, "normalize": True, "density": 1.0, "trim": "topk"}
    assert recipe.output.dtype == "bfloat16"
    assert recipe.output.kind == "model"
    found = effective_settings(recipe, "m.layers.0.q_proj", 2)
    assert found.weights == (0.5, 2.0)
    assert found.parameters == {"density": (0.3, 1.0), "gain": 0.7, "normalize": True, "trim": "topk"}
    assert set(recipe.notes) == {"out_dtype bfloat16 wins over dtype float32"}


DEFAULTS = [
    ("linear", {"normalize": True}),
    ("task_arithmetic", {"normalize": False, "gain": 1.0}),
    ("ties", {"normalize": True, "density": 1.0, "gain": 1.0, "trim": "topk"}),
    ("dare_linear", {"normalize": False, "rescale": "l1", "density": 1.0, "gain": 1.0}),
    ("dare_ties", {"normalize": False, "rescale": "l1", "density": 1.0, "gain": 1.0}),
    ("della", {"normalize": True, "rescale": "l1", "density": 1.0, "epsilon": 0.15, "gain": 1.0}),
    ("della_linear", {"normalize": False, "rescale": "l1", "density": 1.0, "epsilon": 0.15, "gain": 1.0}),
    ("breadcrumbs", {"normalize": False, "density": 1.0, "gamma": 0.01, "gain": 1.0}),
    ("sce", {"density": 1.0}),
]


@pytest.mark.parametrize(("method", "defaults"), DEFAULTS)
def test_mergekits_defaults(method: str, defaults: dict[str, object]) -> None:
    text = f"merge_method: {method}\nbase_model: org/base\n{TWO}"
    recipe = parse_recipe(text.replace("{weight: 0.5}", "{weight: 1}"))
    assert {name: recipe.parameters.get(name) for name in defaults} == defaults


PARAMETERS = [
    ("dare_linear", "rescale: false", {"rescale": "none"}),
    ("dare_linear", "rescale: true", {"rescale": "l1"}),
    ("sce", "select_topk: 0.4", {"density": 0.4}),
    ("ties", "lambda: [0, 1]", {"gain": [0.0, 1.0]}),
    ("ties", "rescale: false", {}),
    ("task_arithmetic", "density: 0.3", {}),
    ("nuslerp", "nuslerp_flatten: true", {}),
]


@pytest.mark.parametrize(("method", "given", "expected"), PARAMETERS)
def test_parameters_are_renamed(method: str, given: str, expected: dict[str, object]) -> None:
    recipe = parse_recipe(f"merge_method: {method}\nbase_model: org/base\n{TWO}parameters: {{{given}}}\n")
    assert {name: recipe.parameters[name] for name in expected} == expected
    assert not {"rescale", "density", "nuslerp_flatten"} & recipe.parameters.keys() or expected or method == "ties"


def test_a_default_stands_behind_filters_that_miss() -> None:
    text = f"merge_method: ties\nbase_model: org/base\n{TWO}parameters: {{density: [{{filter: mlp, value: 0.2}}]}}\n"
    recipe = parse_recipe(text)
    assert effective_settings(recipe, "m.mlp", 0).parameters["density"] == 0.2
    assert effective_settings(recipe, "m.attn", 0).parameters["density"] == 1.0


def test_linear_counts_the_base() -> None:
    text = (
        "merge_method: linear\nmodels:\n  - {model: b, parameters: {weight: 1}}\n"
        "  - {model: b+x, parameters: {weight: 1}}\n  - {model: b+y, parameters: {weight: 2}}\n"
    )
    recipe = parse_recipe(text)
    assert recipe.base_model == "b"
    assert [entry.adapter for entry in recipe.adapters] == ["x", "y"]
    assert recipe.parameters["gain"] == 0.75  # (1 D_x + 2 D_y) / 4 = 0.75 (1 D_x + 2 D_y) / 3


def test_slerp_starts_from_base_model() -> None:
    text = "merge_method: slerp\nbase_model: b+y\nmodels: [{model: b+x}, {model: b+y}]\nparameters: {t: 0.3}\n"
    recipe = parse_recipe(text)
    assert [entry.adapter for entry in recipe.adapters] == ["y", "x"]
    assert recipe.base_model == "b"
    assert any("slerp acts on the adapters' deltas here" in note for note in recipe.notes)


WRONG = [
    (HEAD + TWO + "modules: {}\n", "recipe:6:1: give base_model once; module names come from the checkpoint"),
    (
        HEAD + TWO + "tokenizer_source: union\n",
        "recipe:6:19: vocabularies are not merged; all adapters must share the base's tokenizer, got 'union'\n"
        "hint: write tokenizer_source: base, or delete it",
    ),
    (
        HEAD + TWO + "tokenizer: {source: org/other}\n",
        "recipe:6:21: vocabularies are not merged; all adapters must share the base's tokenizer, got 'org/other'\n"
        "hint: write source: base, or delete it",
    ),
    (
        HEAD + TWO + "tokenizer: {tokens: {a: b}}\n",
        "recipe:6:13: vocabularies are not merged; all adapters must share the base's tokenizer\nhint: delete tokens",
    ),
    (HEAD + TWO + "out_dtyp: float16\n", "recipe:6:1: unknown key 'out_dtyp'\nhint: did you mean out_dtype?"),
    (
        HEAD + TWO + "dtype: bf16\n",
        "recipe:6:8: dtype must be float32, float16 or bfloat16, got 'bf16'\nhint: did you mean bfloat16?",
    ),
    (
        HEAD + TWO + "dtype: float16\noutput: {dtype: float32}\n",
        "recipe:6:8: dtype float16 contradicts output.dtype float32\nhint: keep one of them",
    ),
    (HEAD + TWO + "parameters: {lambda: x}\n", "recipe:6:22: parameters.lambda must be a number, got 'x'"),
    (HEAD + TWO + "parameters: {lamda: 1}\n", "recipe:6:14: task_arithmetic has no parameter 'lamda'"),
    (
        HEAD + "models: [{model: org/base+x, paramters: {}}]\n",
        "recipe:3:30: unknown key 'paramters'\nhint: did you mean parameters?",
    ),
    (
        HEAD + "models: [{model: org/base+x, parameters: {weight: 1, lambda: 1}}]\n",
        "recipe:3:54: lambda applies to the merge as a whole\nhint: move it under the recipe's parameters",
    ),
    (
        HEAD + "models: [{model: org/base+x}]\n",
        "recipe:3:10: task_arithmetic needs a weight for 'org/base+x'\n"
        "hint: add parameters: {weight: 1.0} to each model, or to the recipe",
    ),
    (
        HEAD + "models: [{model: org/other+x, parameters: {weight: 1}}]\n",
        "recipe:3:18: the base of 'org/other+x' is not base_model (org/base)\nhint: adapters can only be merged on one base",
    ),
    (
        HEAD + "models: [{model: org/other+x+y, parameters: {weight: 1}}]\n",
        "recipe:3:18: 'org/other+x+y' is not base+lora: one input is one base and one adapter\n"
        "hint: give every adapter its own entry; a path that holds a + must exist",
    ),
    (
        "merge_method: ties\nbase_model: b+y\nmodels: [{model: b+x, parameters: {weight: 1}}]\n",
        "recipe:2:13: base_model 'b+y' carries an adapter, so ties would merge differences of adapters\n"
        "hint: give the plain base as base_model",
    ),
    (
        "merge_method: linear\nmodels: [{model: b+x, parameters: {weight: 0.5}}]\nparameters: {normalize: false}\n",
        "recipe:3:25: linear with normalize: false scales the base by the sum of the weights, which an adapter cannot express\n"
        "hint: use weights that sum to 1, normalize: true, or task_arithmetic",
    ),
    (
        HEAD + "slices:\n  - sources: [{model: org/base+x, layer_range: [0, 4]}, {model: org/base+y, layer_range: [4, 8]}]\n",
        "recipe:4:5: rmkit runs module by module; it does not restack layers\n"
        "hint: give the same models in every slice, with one layer_range each, from 0 on and without gaps",
    ),
    (
        HEAD + "slices:\n  - sources: [{model: org/base+x, layer_range: [2, 4]}]\n",
        "recipe:4:5: rmkit runs module by module; it does not restack layers\n"
        "hint: give the same models in every slice, with one layer_range each, from 0 on and without gaps",
    ),
    (HEAD + TWO + "adapters: [a]\n", "recipe:3:1: models and adapters cannot stand in one recipe\nhint: keep one of them"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RmkitError) as caught:
        parse_recipe(text)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_a_full_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    text = f"{HEAD}parameters: {{weight: 1}}\nmodels: [{{model: ./lora}}, {{model: ./full}}]\n"
    with pytest.raises(RmkitError) as caught:
        parse_recipe(text, tmp_path / "r.yaml")
    assert "input 2 is a full model (./full)\nhint: extract a LoRA first (mergekit-extract-lora), or use mergekit" in str(
        caught.value
    )


REFERENCES = [
    ("org/base+org/x", None, Reference(base="org/base", adapter="org/x")),
    ("org/base@r+org/x@s", None, Reference(base="org/base@r", adapter="org/x@s")),
    ("org/x", None, Reference(alone="org/x")),
    ("c++/m", None, Reference(alone="c++/m")),
    ("c++/m+u@host/l", None, Reference(base="c++/m", adapter="u@host/l")),
    ("c++/m+a+b", None, Reference(base="c++/m", adapter="a+b")),
    ("org/base+a+b", "org/base", Reference(base="org/base", adapter="a+b")),
    ("org/base+a+b", None, Reference(base="org/base", adapter="a+b")),
    ("u@host/l", None, Reference(alone="u@host/l")),
]


@pytest.mark.parametrize(("text", "base", "expected"), REFERENCES)
def test_references_with_plus_and_at(text: str, base: str | None, expected: Reference, tmp_path: Path) -> None:
    for folder in ("c++/m", "u@host/l", "a+b"):
        (tmp_path / folder).mkdir(parents=True)
    assert split(text, base, tmp_path) == expected


# mergekit's own parser and evaluation as the judge

NUMBER = st.sampled_from([0, 1, 0.25, 1e-5, -2.5, 3])
SCALAR_OR_GRADIENT = NUMBER | st.lists(NUMBER, min_size=1, max_size=4)
FILTERS = st.lists(
    st.builds(
        lambda f, v: {"filter": f, "value": v}, st.sampled_from(["q_proj", "mlp", "1.", "*", "weight"]), SCALAR_OR_GRADIENT
    )
    | st.builds(lambda v: {"value": v}, SCALAR_OR_GRADIENT),
    min_size=1,
    max_size=3,
)
SETTING = SCALAR_OR_GRADIENT | FILTERS
SITES = [f"model.layers.{i}.{m}" for i in range(5) for m in ("self_attn.q_proj", "mlp.up_proj")] + [
    "model.embed_tokens",
    "lm_head",
]

Judge = Callable[[str], dict[str, tuple[list[float], float]]]


@pytest.fixture(scope="module")
def judge() -> Judge:
    """Weights per model and lambda at every site, by mergekit's parser and resolver."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import ConfigReader, MergeConfiguration, OutputSliceDefinition
        from mergekit.merge_methods import get
        from mergekit.parameter_resolver import resolve_parameters

    def resolve(text: str) -> dict[str, tuple[list[float], float]]:
        config = MergeConfiguration.model_validate(YAML(typ="safe", pure=True).load(text))
        slices = config.slices or [
            OutputSliceDefinition.model_validate(
                {
                    "sources": [
                        {"model": m.model, "layer_range": (0, 5), "parameters": m.parameters} for m in config.models or []
                    ]
                }
            )
        ]
        found: dict[str, tuple[list[float], float]] = {}
        for site in SITES:
            number = int(site.split(".")[2]) if ".layers." in site else None
            chosen, t = (slices[-1] if site == "lm_head" else slices[0]), 0.0
            for each in slices:
                first, end = each.sources[0].layer_range
                if number is not None and first <= number < end:
                    chosen, t = each, (number - first) / (end - first - 1) if end - first > 1 else 1.0
            reader = ConfigReader(config=config, t=t, slice_out=chosen)
            models = [source.model for source in chosen.sources]
            shared, each_model = resolve_parameters(
                get(config.merge_method).spec,
                tensor_name=f"{site}.weight",
                inputs=dict.fromkeys(models, f"{site}.weight"),
                sources=reader.parameter_sources,
                base_model=config.base_model,
                t=t,
            )
            found[site] = ([each_model[model]["weight"] for model in models], shared["lambda"])
        return found

    return resolve


def ours(recipe: Recipe) -> dict[str, tuple[list[float], float]]:
    layers = count_layers(SITES)["model.layers"]
    found = {site: effective_settings(recipe, site, layers) for site in SITES}
    return {site: (list(each.weights), float(each.parameters["gain"])) for site, each in found.items()}  # type: ignore[arg-type]


def agree(judge: Judge, data: dict[str, Any]) -> None:
    text = json.dumps(data)
    recipe = parse_recipe(text)
    assert recipe.text == text
    mine, theirs = ours(recipe), judge(text)
    for site in SITES:
        assert mine[site][0] == pytest.approx(theirs[site][0], abs=1e-12), site
        assert math.isclose(mine[site][1], theirs[site][1], abs_tol=1e-12), site


def closed(setting: Any) -> Any:
    """A filter list that covers everything: where none matches, mergekit fails and we do not."""
    return [*setting, {"value": 7}] if isinstance(setting, list) and isinstance(setting[0], dict) else setting


@settings(max_examples=60, deadline=None)
@given(x=SETTING, y=SETTING, common=SETTING, gain=SETTING)
def test_values_are_mergekits(judge: Judge, x: Any, y: Any, common: Any, gain: Any) -> None:
    models = [{"model": "b+x", "parameters": {"weight": x}}, {"model": "b+y", "parameters": {"weight": y}}, {"model": "b+z"}]
    parameters = {"weight": closed(common), "lambda": gain}
    agree(judge, {"merge_method": "task_arithmetic", "base_model": "b", "models": models, "parameters": parameters})


@settings(max_examples=60, deadline=None)
@given(x=SETTING, y=SETTING, middle=SETTING, common=SETTING, gain=SETTING, cut=st.integers(1, 4))
def test_slices_are_mergekits(judge: Judge, x: Any, y: Any, middle: Any, common: Any, gain: Any, cut: int) -> None:
    def sources(first: int, end: int, each: Any) -> list[dict[str, Any]]:
        span = {"layer_range": [first, end]}
        return [{"model": "b+x", **span, "parameters": {"weight": each}}, {"model": "b+y", **span}]

    slices = [
        {"sources": sources(0, cut, x), "parameters": {"weight": middle, "lambda": gain}},
        {"sources": sources(cut, 5, y)},
    ]
    parameters = {"weight": closed(common), "lambda": closed(gain)}
    agree(judge, {"merge_method": "task_arithmetic", "base_model": "b", "slices": slices, "parameters": parameters})

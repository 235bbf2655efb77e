"""What a parameter is at a site: gradients, filter lists, layer ranges, who wins over whom."""

import pytest

from robustmerge_kit.errors import PlanError, RecipeError
from robustmerge_kit.methods import find
from robustmerge_kit.recipe import SiteSettings, count_layers, effective_settings, parse_recipe, resolve_params, stack_name
from robustmerge_kit.recipe.schema import Filtered
from robustmerge_kit.recipe.values import evaluate, layer_number, position

NAMES = [
    ("model.layers.7.self_attn.q_proj", 7, "model.layers"),
    ("transformer.h.11.attn.c_attn", 11, "transformer.h"),
    ("encoder.layer.3.output.dense", 3, "encoder.layer"),
    ("blocks.0.attn.qkv", 0, "blocks"),
    ("encoder.block.5.layer.1.DenseReluDense.wi", 5, "encoder.block"),
    ("model.layers.2.mlp.experts.9.w1", 2, "model.layers"),
    ("model.vision_tower.vision_model.encoder.layers.4.k_proj", 4, "model.vision_tower.vision_model.encoder.layers"),
    ("model.layers.3", 3, "model.layers"),
    ("model.mm_projector.0", None, ""),
    ("lm_head", None, ""),
    ("path.7.x", None, ""),
    ("layers.x.1", None, ""),
]


@pytest.mark.parametrize(("site", "number", "stack"), NAMES)
def test_layer_numbers(site: str, number: int | None, stack: str) -> None:
    assert layer_number(site) == number
    assert stack_name(site) == stack


def test_layers_are_counted_per_stack() -> None:
    sites = ["a.layers.0.q", "a.layers.5.q", "b.layers.1.q", "lm_head"]
    assert count_layers(sites) == {"": 0, "a.layers": 6, "b.layers": 2}


POSITIONS = [
    ("m.layers.0.q", 5, 0.0),
    ("m.layers.4.q", 5, 1.0),
    ("m.layers.1.q", 5, 0.25),
    ("m.layers.0.q", 1, 1.0),
    ("lm_head", 5, 0.0),
]


@pytest.mark.parametrize(("site", "layers", "t"), POSITIONS)
def test_positions(site: str, layers: int, t: float) -> None:
    assert position(site, layers) == t


VALUES = [
    (3, "x", 0.5, 3),
    (True, "x", 0.5, True),
    ("l1", "x", 0.5, "l1"),
    ([1.0, 3.0], "x", 0.0, 1.0),
    ([1.0, 3.0], "x", 0.25, 1.5),
    ([1.0, 3.0], "x", 1.0, 3.0),
    ([0.0, 1.0, 0.0], "x", 0.75, 0.5),
    ([7.0], "x", 0.4, 7.0),
    ([Filtered(filter="mlp", value=1), Filtered(value=2)], "a.mlp.up", 0.0, 1),
    ([Filtered(filter="mlp", value=1), Filtered(value=2)], "a.attn.q", 0.0, 2),
    ([Filtered(filter="mlp", value=1), Filtered(filter="up", value=2)], "a.mlp.up", 0.0, 1),
    ([Filtered(filter="mlp", value=1)], "a.attn.q", 0.0, None),
    ([Filtered(filter="*", value=1)], "a.attn.q", 0.0, 1),
    ([Filtered(filter="q.weight", value=1)], "a.attn.q", 0.0, 1),
    ([Filtered(filter="a", value=[0.0, 4.0])], "a", 0.5, 2.0),
    ([Filtered(filter="a", value="text"), Filtered(value=False)], "b", 0.5, False),
    ([Filtered(layers=(2, 4), value=1), Filtered(value=2)], "m.layers.3.q", 0.5, 1),
    ([Filtered(layers=(2, 4), value=1), Filtered(value=2)], "m.layers.4.q", 0.5, 2),
    ([Filtered(layers=(2, 4), value=1), Filtered(value=2)], "lm_head", 0.0, 2),
    ([Filtered(layers=(2, 5), value=[0.0, 1.0])], "m.layers.3.q", 0.1, 0.5),
    ([Filtered(layers=(2, 3), value=[0.0, 1.0])], "m.layers.2.q", 0.1, 1.0),
    ([Filtered(layers=(2, 5), filter="k", value=1), Filtered(value=2)], "m.layers.3.q", 0.1, 2),
]


@pytest.mark.parametrize(("value", "site", "t", "expected"), VALUES)
def test_evaluate(value: object, site: str, t: float, expected: object) -> None:
    found = evaluate(value, site, t)  # type: ignore[arg-type]
    assert found == expected
    assert type(found) is type(expected)


RECIPE = """
merge_method: robustmerge
adapters:
  - {adapter: a, parameters: {weight: 0.5}}
  - {adapter: b, parameters: {density: [0.4, 0.8]}}
  - c
parameters: {density: [{filter: embed, value: 0.9}, {value: 0.1}], gain: 3, weight: [{filter: q_proj, value: 2}]}
space: core
overrides:
  - {match: "*.layers.1.*", parameters: {density: 0.6}}
  - {match: "*.mlp.*", merge_method: linear, parameters: {weight: [1, 3]}}
  - {match: "*mlp*", parameters: {gain: 7}}
  - {match: "*.k_proj", parameters: {density: [{filter: layers.2, value: 0.3}]}}
"""


def settings(site: str) -> SiteSettings:
    return effective_settings(parse_recipe(RECIPE), site, 3)


PRECEDENCE = [
    # entry over recipe; recipe where an entry is silent; weight 1 where nothing says
    ("m.layers.0.q_proj", "robustmerge", (0.1, 0.4, 0.1), 3, (0.5, 2.0, 2.0), None),
    ("m.layers.2.q_proj", "robustmerge", (0.1, 0.8, 0.1), 3, (0.5, 2.0, 2.0), None),
    ("embed_tokens", "robustmerge", (0.9, 0.4, 0.9), 3, (0.5, 1.0, 1.0), None),
    # override over entries, key by key
    ("m.layers.1.v_proj", "robustmerge", 0.6, 3, (0.5, 1.0, 1.0), 0),
    # the first override wins, and only parameters its method knows reach it
    ("m.layers.1.mlp.up", "robustmerge", 0.6, 3, (0.5, 1.0, 1.0), 0),
    ("m.layers.2.mlp.up", "linear", None, 3, (3.0, 3.0, 3.0), 1),
    ("m.layers.0.mlp.up", "linear", None, 3, (1.0, 1.0, 1.0), 1),
    ("m.layers.2.xmlp", "robustmerge", (0.1, 0.8, 0.1), 7, (0.5, 1.0, 1.0), 2),
    # a filter list that describes nothing leaves the value to the next place
    ("m.layers.2.k_proj", "robustmerge", 0.3, 3, (0.5, 1.0, 1.0), 3),
    ("m.layers.0.k_proj", "robustmerge", (0.1, 0.4, 0.1), 3, (0.5, 1.0, 1.0), 3),
]


@pytest.mark.parametrize(("site", "method", "density", "gain", "weights", "override"), PRECEDENCE)
def test_precedence(
    site: str, method: str, density: object, gain: float, weights: tuple[float, ...], override: int | None
) -> None:
    found = settings(site)
    assert found.method == method
    assert found.override == override
    assert found.weights == pytest.approx(weights)
    assert found.parameters["gain"] == gain
    assert set(found.parameters) == {"gain"} | ({"density"} if density is not None else set())
    assert found.parameters.get("density") == (None if density is None else pytest.approx(density))


def test_globs_are_case_sensitive() -> None:
    recipe = parse_recipe('merge_method: linear\nadapters: [a]\noverrides: [{match: "*.MLP", parameters: {gain: 2}}]\n')
    assert effective_settings(recipe, "m.mlp", 0).override is None


def test_an_adapter_without_a_value_takes_the_default() -> None:
    text = "merge_method: robustmerge\nadapters: [a, {adapter: b, parameters: {density: 0.7}}]\n"
    assert effective_settings(parse_recipe(text), "x", 0).parameters == {"density": (0.2, 0.7)}


def test_a_required_parameter_that_one_adapter_lacks_at_a_site() -> None:
    text = (
        "merge_method: magnitude_prune\n"
        "adapters:\n"
        "  - {adapter: a, parameters: {density: 0.5}}\n"
        "  - {adapter: b, parameters: {density: [{filter: q, value: 0.5}]}}\n"
    )
    recipe = parse_recipe(text)
    assert effective_settings(recipe, "q", 0).parameters == {"density": (0.5, 0.5)}
    with pytest.raises(RecipeError, match="needs a density for every adapter, and 'b' has none here"):
        effective_settings(recipe, "k", 0)


def test_the_space_stays_with_its_kind_of_method() -> None:
    text = (
        "merge_method: ties\nadapters: [a]\nspace: {core: {basis: deltas}}\noverrides:\n"
        "  - {match: a, merge_method: linear}\n"
        "  - {match: b, merge_method: dare_linear, parameters: {density: 0.5}}\n"
        "  - {match: c, space: knots}\n"
    )
    recipe = parse_recipe(text)
    core = {"core": {"basis": "deltas"}}
    assert [effective_settings(recipe, site, 0).space for site in "abcd"] == [None, core, "knots", core]


PARAMS = [
    ("robustmerge", {"density": 2.0}, "x: density must be at most 1, got 2.0"),
    ("robustmerge", {"density": (0.1, 7.0)}, "x: density must be at most 1, got 7.0"),
    ("magnitude_prune", {}, "x: magnitude_prune needs the parameter density\nhint: add it under parameters: {density: ..}"),
]


@pytest.mark.parametrize(("method", "values", "message"), PARAMS)
def test_params_that_a_method_refuses(method: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_params(find(method), values, "x")
    assert str(caught.value) == message


def test_params_are_the_methods_own() -> None:
    params = resolve_params(find("robustmerge"), {"density": (0.1, 0.2), "gain": 1})
    assert params.each("density", 2) == (0.1, 0.2)
    assert params.each("gain", 2) == (1.0, 1.0)


def test_layers_beyond_the_slices_are_refused() -> None:
    text = (
        "merge_method: linear\nbase_model: b\nslices:\n"
        "  - sources: [{model: b+x, layer_range: [0, 2], parameters: {weight: 1}}]\n"
    )
    recipe = parse_recipe(text)
    assert effective_settings(recipe, "m.layers.1.q", 3).weights == (1.0,)
    with pytest.raises(PlanError, match="slices end at layer 2, and the adapters have layer 2"):
        effective_settings(recipe, "m.layers.2.q", 3)

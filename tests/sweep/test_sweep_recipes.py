"""The `sweep` section: what it may say, what is wrong in it and where, and the plain recipes of its trials."""

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustmerge_kit.errors import RecipeError, RmkitError
from robustmerge_kit.homes import OnWeb, Opened
from robustmerge_kit.recipe import Axis, json_schema, parse_recipe, plain_data, vary
from robustmerge_kit.recipe.load import _build
from robustmerge_kit.recipe.yaml_text import read_yaml

HEAD = "merge_method: ties\nadapters: [a, {adapter: b, parameters: {density: 0.1}}]\nparameters: {density: 0.2}\n"
TAIL = "  evaluate: diagnostics\n  trials: 5\n"


def section(search: str, tail: str = TAIL, head: str = HEAD) -> str:
    """A recipe whose search starts at line 6, column 5."""
    lines = "".join(f"    {line}\n" for line in search.split("\n"))
    return f"{head}sweep:\n  search:\n{lines}{tail}"


def evaluated(by: str) -> str:
    return section("density: [0.1]", f"  evaluate: {by}\n  trials: 5\n")


GOOD = [
    section("density: {low: 0.1, high: 1}"),
    section("parameters.density: [0.1, 0.2, [0.1, 0.5], [{filter: q, value: 0.3}, {value: 0.1}]]"),
    section("density: [{low: 0.1, high: 0.5}, 0.3, {low: 0.1, high: 1.0, step: 0.1}]"),
    section(
        "merge_method: [ties, linear, robustmerge]\nspace: [full, core, {ctm: {rank: 4}}]\ngain: {low: 0.1, high: 9, log: true}"
    ),
    section("adapters[0].parameters.weight: {low: 0, high: 2, step: 0.5}\noutput.rank: [4, auto, {energy: 0.9}]"),
    section("pre: [[], [norm_balance], [{norm_balance: {beta: 0.5}}]]\nseed: [0, 1]"),
    section("adapters[0].adapter: [x, y]"),
    section("overrides[0].parameters.density: [0.1, 0.4]", head=HEAD + 'overrides: [{match: "*"}]\n'),
    section("density: {low: 0.1, high: 1, step: 0.1}", "  evaluate: diagnostics\n  sampler: grid\n"),
    section(
        "density: [0.1]",
        "  evaluate: diagnostics\n  sampler: random\n  trials: 3\n  seed: 7\n  direction: minimize\n  patience: 2\n",
    ),
    evaluated('{command: "python score.py {out}", timeout: 60, value: {file: r.json, key: a.b}}'),
    evaluated('{command: [python, score.py, "{out}"], value: {file: r.json, key: [results, 0, "acc,none"]}}'),
    evaluated("{python: package.module:function, timeout: 1.5}"),
    evaluated("{python: 'scores/one.py:function'}"),
    "vars: {most: 0.9}\n" + section("density: {low: 0.1, high: <most>}"),
]

GRID = "  evaluate: diagnostics\n  sampler: grid\n"
A_GRADIENT = "a list with ranges is a gradient; a list of other values is a choice"
A_NAME = "write it as parameters.density or adapters[0].parameters.weight"
TWO_FORMS = "diagnostics, {command: ..} or {python: module:function}"
CANNOT = "search keys that change what is merged, as parameters.density, merge_method or output.rank"

WRONG: list[tuple[str, list[str]]] = [
    (HEAD + "sweep: 3\n", ["4:8: sweep must be a mapping (key: value), got 3"]),
    (HEAD + "sweep: {}\n", ["4:8: the key 'evaluate' is missing in sweep", "4:8: the key 'search' is missing in sweep"]),
    (section("density: 3"), ["6:14: sweep.search.density must be {low: .., high: ..} or a list of values, got 3"]),
    (section("density: []"), ["6:14: sweep.search.density must have at least 1 entry, got []"]),
    (section("density: {low: 0.1, high: 1, stp: 1}"), ["6:34: unknown key 'stp'\nhint: did you mean step?"]),
    (section("density: {low: 0.1}"), ["6:14: the key 'high' is missing in sweep.search.density"]),
    (section("density: {low: 1, high: 0.1}"), ["6:14: density: low 1 is above high 0.1"]),
    (section("density: {low: 0.1, high: 1, step: 0.1, log: true}"), ["6:14: density: log and step exclude each other"]),
    (section("gain: {low: 0, high: 1, log: true}"), ["6:11: gain: a logarithmic range begins above 0, got low 0"]),
    (section("density: {low: 0, high: 1}"), ["6:14: sweep.search.density must be greater than 0, got 0"]),
    (section("density: [0.1, 1.5]"), ["6:20: sweep.search.density[1] must be at most 1, got 1.5"]),
    (section("density: [0.1, 0.2, 0.1]"), ["6:25: density lists 0.1 twice"]),
    (section("density: [0.1, {low: 1, high: 2}]"), ["6:20: sweep.search.density[1] must be at most 1, got 2"]),
    (
        section("density: [a, {low: 0.1, high: 1}]"),
        [f"6:15: a gradient holds ranges and numbers, got 'a'\nhint: {A_GRADIENT}"],
    ),
    (section("densty: [0.1]"), ["6:5: no method of ties has a parameter 'densty'\nhint: did you mean density?"]),
    (section("space: [core]", head="merge_method: tsv_m\nadapters: [a]\nname: x\n"), ["6:5: no method of tsv_m has spaces"]),
    (
        section("space: [cor]"),
        ["6:13: sweep.search.space[0] must be full, core, knots, ctm or factor, got 'cor'\nhint: did you mean core?"],
    ),
    (section("merge_method: [ties, tiess]"), ["6:26: no merge method is called 'tiess'\nhint: did you mean ties?"]),
    (section("merge_method: [ties, slerp]"), ["6:26: slerp needs the parameter t\nhint: add it under parameters: {t: ..}"]),
    (
        section("a..b: [1]"),
        [f"6:5: 'a..b' is not the way to a key of a recipe\nhint: {A_NAME}"],
    ),
    (section("output.path: [a, b]"), [f"6:5: output.path cannot be searched\nhint: {CANNOT}"]),
    (section("vars.x: [1, 2]"), [f"6:5: vars.x cannot be searched\nhint: {CANNOT}"]),
    (
        section("density: [0.1]\nparameters.density: [0.2]"),
        ["7:5: parameters.density is searched twice\nhint: keep one of the two"],
    ),
    (section("overrides[0].merge_method: [linear]"), ["6:5: overrides[0].merge_method: the recipe has no such place, but []"]),
    (section("output.rank: {low: 0, high: 8}"), ["6:18: sweep.search.output.rank must be at least 1, got 0"]),
    (
        section("density: {low: 0.1, high: 1}", GRID),
        ["6:14: a grid needs steps, and density is a range without\nhint: add step: .., or list the values"],
    ),
    (
        section("density: [0.1]", "  evaluate: diagnostics\n"),
        ["5:3: sampler tpe needs the number of trials\nhint: add e.g. trials: 50"],
    ),
    (evaluated("diagnostcs"), ["7:13: sweep.evaluate must be diagnostics, got 'diagnostcs'\nhint: did you mean diagnostics?"]),
    (
        evaluated("{comand: x}"),
        [f"7:13: sweep.evaluate must be {TWO_FORMS}, got a mapping with the keys comand"],
    ),
    (evaluated("{command: x, timeout: 0}"), ["7:35: sweep.evaluate.timeout must be greater than 0, got 0"]),
    (evaluated("{command: x, vale: {}}"), ["7:26: unknown key 'vale'\nhint: did you mean value?"]),
    (
        "merge_method: linear\nbase_model: b\nmodels: [{model: b+x, parameters: {weight: 1}}]\nsweep: {}\n",
        ["4:1: a sweep needs a recipe in rmkit's own form\nhint: list the inputs under `adapters`"],
    ),
]


def messages(text: str) -> list[str]:
    with pytest.raises(RmkitError) as caught:
        parse_recipe(text)
    errors = getattr(caught.value, "errors", (caught.value,))
    assert all(isinstance(error, RecipeError) for error in errors)
    return [str(error).removeprefix("recipe:") for error in errors]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("text", GOOD)
def test_good_sections_load_and_fit_the_schema(text: str, validator: jsonschema.Draft202012Validator) -> None:
    recipe = parse_recipe(text)
    assert recipe.search is not None
    assert recipe.search.axes
    assert [error.message for error in validator.iter_errors(read_yaml(text, "r").data)] == []


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_wrong_sections(text: str, expected: list[str]) -> None:
    assert messages(text) == expected


def test_what_the_schema_can_tell_it_refuses(validator: jsonschema.Draft202012Validator) -> None:
    texts = [text for text, expected in WRONG if "unknown key" in expected[0] or "must be a mapping" in expected[0]]
    assert len(texts) >= 3
    for text in (*texts, HEAD + "sweep: {}\n", section("density: []"), evaluated("diagnostcs"), evaluated("{python: a}")):
        assert not validator.is_valid(read_yaml(text, "r").data), text


def test_a_recipe_without_a_sweep_draws_nothing() -> None:
    assert parse_recipe(HEAD).search is None


def axes(search: str) -> dict[str, Axis]:
    found = parse_recipe(section(search)).search
    assert found is not None
    return {axis.name: axis for axis in found.axes}


@pytest.mark.parametrize(
    ("search", "whole"),
    [
        ("gain: {low: 0, high: 4}", False),
        ("output.rank: {low: 2, high: 64}", True),
        ("output.rank: {low: 2, high: 64, step: 2}", True),
        ("adapters[1].parameters.weight: {low: -1, high: 1}", False),
        ("seed: {low: 0, high: 9}", True),
        ("pre[0].norm_balance.beta: {low: 0, high: 1}", False),
    ],
)
def test_ranges_are_whole_where_the_key_takes_no_fractions(search: str, whole: bool) -> None:
    recipe = parse_recipe(section(search, head=HEAD + "pre: [{norm_balance: {}}]\n"))
    assert recipe.search is not None
    assert [axis.whole for axis in recipe.search.axes] == [whole]


def test_the_points_of_a_gradient_are_axes() -> None:
    found = axes("density: [{low: 0.1, high: 0.5}, 0.3, {low: 0.2, high: 1.0}]")
    assert {name: axis.path for name, axis in found.items()} == {
        "density[0]": ("parameters", "density", 0),
        "density[2]": ("parameters", "density", 2),
    }


@pytest.mark.parametrize(
    ("search", "steps"),
    [
        ("density: {low: 0.1, high: 0.45, step: 0.1}", [0.1, 0.2, 0.3, 0.4]),
        ("density: {low: 0.5, high: 0.5}", [0.5]),
        ("output.rank: {low: 2, high: 9, step: 3}", [2, 5, 8]),
        ("output.rank: [4, auto, {energy: 0.9}]", [4, "auto", '{"energy": 0.9}']),
    ],
)
def test_the_values_of_a_grid(search: str, steps: list[Any]) -> None:
    (axis,) = axes(search).values()
    assert axis.steps() == steps


TRIALS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("density: {low: 0.1, high: 1}", {"density": 0.4}, {"parameters": {"density": 0.4}}),
    ("output.rank: [4, {energy: 0.9}]", {"output.rank": '{"energy": 0.9}'}, {"output": {"rank": {"energy": 0.9}}}),
    (
        "density: [{low: 0.1, high: 0.5}, 0.3, {low: 0.2, high: 1.0}]",
        {"density[0]": 0.2, "density[2]": 0.7},
        {"parameters": {"density": [0.2, 0.3, 0.7]}},
    ),
    (
        "adapters[0].parameters.weight: [0.5, 1.5]",
        {"adapters[0].parameters.weight": 1.5},
        {"adapters": [{"adapter": "a", "parameters": {"weight": 1.5}}, {"adapter": "b", "parameters": {"density": 0.1}}]},
    ),
    # a method that has no density loses those that the recipe sets for another
    (
        "merge_method: [ties, linear]",
        {"merge_method": "linear"},
        {"merge_method": "linear", "parameters": {}, "adapters": ["a", {"adapter": "b", "parameters": {}}]},
    ),
    ("space: [core]\nmerge_method: [ties, tsv_m]", {"merge_method": "ties", "space": "core"}, {"space": "core"}),
]


@pytest.mark.parametrize(("search", "drawn", "expected"), TRIALS)
def test_a_trial_is_a_plain_recipe(search: str, drawn: dict[str, Any], expected: dict[str, Any]) -> None:
    recipe = parse_recipe(section(search))
    trial = vary(recipe, drawn, "# one of many\n")
    assert trial.sweep is None
    assert trial.text.startswith("# one of many\n")
    assert plain_data(trial) == {**plain_data(recipe), **expected}
    assert parse_recipe(trial.text).model_dump() == trial.model_dump()


def test_a_space_of_the_recipe_goes_with_the_methods_that_have_spaces() -> None:
    recipe = parse_recipe(section("merge_method: [ties, tsv_m]", head=HEAD + "space: core\n"))
    assert vary(recipe, {"merge_method": "tsv_m"}).space is None
    assert vary(recipe, {"merge_method": "ties"}).space == "core"


def test_parents_and_variables_are_written_out(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(section("density: {low: 0.1, high: <most>}") + "vars: {most: 0.5}\n")
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nseed: 3\nvars: {most: 0.75}\n")
    recipe = parse_recipe(child.read_text(), child)
    assert recipe.search is not None
    assert recipe.search.axes[0].high == 0.75
    data = plain_data(vary(recipe, {"density": 0.6}))
    assert (data["seed"], data["parameters"]["density"]) == (3, 0.6)
    assert {"extends", "vars", "sweep"} & set(data) == set()


STRANGE = [
    ("{command: rm x}", "hub"),
    ("{python: a:b}", "hub"),
    ("diagnostics", None),
]


@pytest.mark.parametrize(("evaluate", "refused"), STRANGE)
def test_nothing_is_run_that_a_recipe_from_elsewhere_says(evaluate: str, refused: str | None, tmp_path: Path) -> None:
    text = evaluated(evaluate).replace("[a, {adapter: b,", "[org/a, {adapter: org/b,")
    url = "https://example.org/r.yaml"
    opened = Opened(text.encode(), OnWeb(url), url, url, url, "r")
    if refused is None:
        assert _build(opened, {}, {}).search is not None
        return
    with pytest.raises(RecipeError, match=r"r\.yaml:7:13: a recipe from elsewhere may not say what is run here\nhint: read it"):
        _build(opened, {}, {})


ODD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"overrides[1].merge_method": ["linear"], "density": [0.1]}, {"overrides": [{"match": "*"}]}, "has no such place"),
    ({"overrides[0].merge_method": ["linear", "ties"], "density": [0.1]}, {"overrides": [{"match": "*"}]}, ""),
    ({"overrides[0].parameters.density": [0.3], "merge_method": ["linear", "ties"]}, {"overrides": [{"match": "*"}]}, ""),
    ({"merge_method.x": ["linear"], "density": [0.1]}, {}, "the recipe has no such place, but 'ties'"),
    ({"merge_method": [1, None], "density": [0.1]}, {}, "no merge method is called '1'"),
    ({"overrides": [[{"match": "*", "merge_method": "linear"}], []], "density": [0.1]}, {}, ""),
    ({"overrides": [3, "x"], "merge_method": ["ties", "svd"]}, {}, "must be a list, got 3"),
    ({"overrides": [[{"match": "*", "merge_method": "x"}], [4]], "merge_method": ["ties", "svd"]}, {}, "is called 'x'"),
    ({"adapters": [["a", "b", "c"], ["a"]], "adapters[2].parameters.weight": [1]}, {}, "is searched twice"),
    ({"adapters": [["a", "b"], 3], "merge_method": ["ties", "linear"]}, {}, "must be a list, got 3"),
    ({"adapters[0]": ["x", "y"], "adapters[1].parameters": [{"weight": 1}, {"weight": 2}]}, {}, ""),
    ({"parameters": [{"density": 0.1}, 3], "merge_method": ["ties", "linear"]}, {}, "must be a mapping (key: value), got 3"),
    ({"gain": {"low": -1e308, "high": 1e308}}, {}, "gain: numbers up to 1e+15 can be searched"),
    ({"gain": {"low": 0.0, "high": 1.0, "step": 1e-300}}, {}, "gain: a range has at most 1000000 steps"),
    ({"density": [{"filter": "a", "value": 0.5}, {"value": 0.3}]}, {}, "density"),
    ({"density": [[{"filter": "a", "value": 0.5}, {"value": 0.3}], 0.2]}, {}, ""),
    ({"seed": {"low": 0, "high": 10**20}}, {}, "numbers up to 1e+15 can be searched"),
]


@pytest.mark.parametrize(("search", "keys", "said"), ODD)
def test_odd_searches(search: dict[str, Any], keys: dict[str, Any], said: str) -> None:
    whole = {
        "merge_method": "ties",
        "adapters": ["a", "b"],
        "sweep": {"search": search, "evaluate": "diagnostics", "trials": 2},
    }
    text = json.dumps({**whole, **keys})
    if said:
        assert said in "".join(messages(text))
        return
    loaded = parse_recipe(text)
    assert loaded.search is not None
    assert [vary(loaded, drawn).sweep for drawn in loaded.search.contexts(plain_data(loaded))]


def test_a_grid_has_a_limit() -> None:
    axes = {name: {"low": 0, "high": 99, "step": 1} for name in ("seed", "gain", "density[0]")} | {"density": [0.1]}
    del axes["density[0]"]
    axes["adapters[0].parameters.weight"] = {"low": 0, "high": 99, "step": 1}
    sweep = {"search": axes, "evaluate": "diagnostics", "sampler": "grid"}
    text = json.dumps({"merge_method": "ties", "adapters": ["a"], "sweep": sweep})
    assert "the grid has 1000000 combinations, the limit is 100000" in "".join(messages(text))


WAYS = """
density gain parameters parameters.density parameters.density.x merge_method space space.ctm.rank adapters adapters[0] seed
adapters[1].parameters.weight adapters[9].adapter adapters[0].adapter[1] overrides overrides[0].merge_method overrides.x
overrides[1].merge_method overrides[0].parameters.density overrides[0] output.rank output.rank.energy output pre[0] pre
post[0].svc.alpha missing a..b x name meta.x vars.x extends sweep.trials base_model merge_method.x parameters[0] weight
"""
NAMES = st.sampled_from(WAYS.split())
SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(["ties", "linear", "svd", "core", "1"])
RANGES = st.fixed_dictionaries({"low": SCALARS, "high": SCALARS}, optional={"step": SCALARS, "log": st.booleans()})
VALUES = st.recursive(
    SCALARS | RANGES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
LIKELY = st.sampled_from(
    [["ties", "linear"], ["svd"], [0.5], [1, 2], {"low": 0.1, "high": 1}, {"low": 1, "high": 4, "step": 1}]
)
SWEEPS = st.fixed_dictionaries(
    {"search": st.dictionaries(NAMES, LIKELY | VALUES | st.lists(VALUES, min_size=1, max_size=3), min_size=1, max_size=4)},
    optional={
        "evaluate": st.sampled_from(["diagnostics", {"command": "x"}, {"python": "a:b"}, {"python": "a"}, {}, 3]),
        "trials": st.integers(0, 3),
        "sampler": st.sampled_from(["tpe", "grid", "random", "x"]),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SWEEPS, st.booleans())
def test_junk_in_the_right_places_never_raises_anything_else(sweep: dict[str, Any], overridden: bool) -> None:
    whole = {"evaluate": "diagnostics", "trials": 2} | sweep
    recipe: dict[str, Any] = {"merge_method": "ties", "adapters": ["a", "b"], "sweep": whole}
    if overridden:
        recipe["overrides"] = [{"match": "*", "merge_method": "linear"}]
    with contextlib.suppress(RmkitError):
        loaded = parse_recipe(json.dumps(recipe))
        assert loaded.search is not None
        for drawn in itertools.islice(loaded.search.contexts(plain_data(loaded)), 4):
            assert vary(loaded, drawn).sweep is None

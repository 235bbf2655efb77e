"""Recipes that are right: what they become, and that the JSON Schema agrees with the parser."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustmerge_kit.disclosure import UNPRINTABLE
from robustmerge_kit.errors import RmkitError
from robustmerge_kit.recipe import AdapterEntry, EnergyRank, FirstOf, Found, json_schema, load_recipe, parse_recipe, starter
from robustmerge_kit.recipe.yaml_text import read_yaml

DESIGN = """
merge_method: robustmerge
adapters:
  - adapter: adapters/iconqa
    parameters: {weight: 1.0}
  - adapters/flickr30k
parameters: {variant: official, density: 0.2}
overrides:
  - match: "*.mlp.*"
    merge_method: ties
    space: core
    parameters: {density: 0.1}
pre:  [{norm_balance: {beta: 0.25}}]
post: [{rescale_output: {to: mean_norm}}]
base_model: org/base
seed: 0
missing: error
extras: {first: iconqa}
allow: [unmatched]
output:
  kind: adapter
  path: merged/vqa
  rank: {energy: 0.99}
  dtype: bfloat16
  format: peft
  for: vllm
name: no
meta: {author: someone, tags: [a, b]}
"""

GOOD = [
    DESIGN,
    "merge_method: linear\nadapters: [a]\n",
    "merge_method: linear\nadapters: [{adapter: a, name: x, adapter_name: y, rename: {a: b}, alpha: 16}]\nextras: drop\n",
    "merge_method: linear\nadapters: [a, b]\nparameters: {gain: 1e-5, weight: [0, 1]}\noutput: {rank: 16}\n",
    "merge_method: linear\nadapters: [a, b]\noutput: {rank: {budget: {average: 16, cap: 32, score: absolute, cost: params}}}\n",
    "merge_method: ties\nadapters: [a, b]\nspace: {ctm: {rank: 16, beta: 0.25}}\nparameters: {density: 0.5}\n",
    "merge_method: ties\nadapters: [a, b]\nspace: {core: {}}\n",
    "merge_method: linear\nadapters: [a, b]\npre: [norm_balance, {norm_cap: {k: 2}}]\npost: [{svc: {alpha: 0.5}}]\n",
    "merge_method: robustmerge\nadapters: [a]\nparameters: {density: [{filter: q, value: [0.1, 0.2]}, "
    "{layers: [0, 4], value: 1}], criterion: [{filter: mlp, value: random}, {value: sign}], normalize: [{value: false}]}\n",
    "merge_method: linear\nbase_model: b\nmodels: [{model: b+x, parameters: {weight: 1}}, "
    "{model: b+y, parameters: {weight: 1}}]\ndtype: float16\ntokenizer_source: base\n"
    "chat_template: auto\nparameters: {normalize: true, int8_mask: true}\n",
    "merge_method: ties\nbase_model: b\nparameters: {weight: 1, lambda: 0.5}\nslices:\n"
    "  - sources: [{model: b+x, layer_range: [0, 8]}, {model: b+y, layer_range: [0, 8]}]\n"
    "  - sources: [{model: b+x, layer_range: [8, 16]}, {model: b+y, layer_range: [8, 16]}]\n",
]

BAD = [
    "merge_method: linear\n",
    "merge_method: linar\nadapters: [a]\n",
    "merge_method: linear\nadapters: [a]\nsed: 1\n",
    "merge_method: linear\nadapters: []\n",
    "merge_method: linear\nadapters: [{adaptr: a}]\n",
    "merge_method: linear\nadapters: [a]\noutput: {rnk: 1}\n",
    "merge_method: linear\nadapters: [a]\noutput: {rank: 0}\n",
    "merge_method: linear\nadapters: [a]\nparameters: {gian: 1}\n",
    "merge_method: linear\nadapters: [a]\nparameters: {gain: x}\n",
    "merge_method: robustmerge\nadapters: [a]\nparameters: {density: 1.5}\n",
    "merge_method: robustmerge\nadapters: [a]\nparameters: {density: [0.1, 1.5]}\n",
    "merge_method: robustmerge\nadapters: [a]\nparameters: {density: [{filter: a, value: 1.5}]}\n",
    "merge_method: robustmerge\nadapters: [a]\nparameters: {variant: papr}\n",
    "merge_method: ties\nadapters: [a]\nspace: {ctm: {rnk: 1}}\n",
    "merge_method: ties\nadapters: [a]\nspace: cor\n",
    "merge_method: ties\nadapters: [a]\nspace: {cor: {}}\n",
    "merge_method: linear\nadapters: [a]\npre: [svc]\n",
    "merge_method: linear\nadapters: [a]\npre: [{norm_balance: {bta: 1}}]\n",
    "merge_method: linear\nadapters: [a]\nsweep: {}\n",
    "merge_method: linear\nadapters: [a]\noverrides: [{mach: x}]\n",
    "merge_method: linear\nadapters: [a]\nmodels: [{model: a}]\n",
    "merge_method: linear\nmodels: [{modl: b+x}]\n",
    "merge_method: linear\nbase_model: b\nmodels: [{model: b+x, parameters: {weigt: 1}}]\n",
]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("text", GOOD)
def test_good_recipes_load_and_fit_the_schema(text: str, validator: jsonschema.Draft202012Validator) -> None:
    assert parse_recipe(text).text == text
    assert [error.message for error in validator.iter_errors(read_yaml(text, "r").data)] == []


COMPOSED = [
    "merge_method: <m>\nvars: {m: ties, d: 0.2, l: [a, b], n: 16}\nadapters: <l>\n"
    "parameters: {density: <d>}\noutput: {rank: <n>, path: merged/<m>}\n",
    "extends: base.yaml\n",
    "extends: base.yaml\nvars: {gain: 0.5}\nparameters: {gain: <gain>, weight: }\nspace:\n",
    "extends: base.yaml\nadapters: [{adapter: a, parameters: {weight: [<w>, 1]}}, <one>]\n",
    "extends: mergekit.yaml\ndtype: float16\n",
    "extends: mergekit.yaml\nmodels: [{model: <base>+y, parameters: {weight: <w>}}]\n",
]
BAD_COMPOSED = [
    "extends: 3\n",
    "extends: base.yaml\nsed: 1\n",
    "extends: base.yaml\nparameters: {gian: 1}\n",
    "extends: base.yaml\nseed: x\n",
    "extends: base.yaml\noutput: {rnk: <r>}\n",
    "extends: base.yaml\nmerge_method: linar\n",
    "merge_method: linear\nadapters: [a]\nvars: {d: }\n",
    "merge_method: linear\nadapters: [a]\nvars: {1d: 3}\n",
    "merge_method: linear\nadapters: [a]\nvars: {d: {a: 1}}\n",
    "merge_method: linear\nadapters: [a]\nvars: [d]\n",
]


@pytest.fixture
def parents(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(
        "merge_method: linear\nadapters: [a, b]\nparameters: {gain: 0.5, weight: 1}\nvars: {w: 0.5, one: c, r: 16}\n"
    )
    (tmp_path / "mergekit.yaml").write_text(
        "merge_method: linear\nbase_model: b\nvars: {w: 1, base: b}\nmodels: [{model: b+x, parameters: {weight: 1}}]\n"
    )
    return tmp_path / "r.yaml"


@pytest.mark.parametrize("text", COMPOSED)
def test_composed_recipes_load_and_fit_the_schema(text: str, parents: Path, validator: jsonschema.Draft202012Validator) -> None:
    recipe = parse_recipe(text, parents)
    assert [error.message for error in validator.iter_errors(read_yaml(text, "r").data)] == []
    again = parse_recipe(recipe.text, parents)
    assert again.model_dump() == {**recipe.model_dump(), "vars": {}}
    assert list(validator.iter_errors(read_yaml(recipe.text, "r").data)) == []


@pytest.mark.parametrize("text", BAD_COMPOSED)
def test_bad_composed_recipes_fit_neither(text: str, parents: Path, validator: jsonschema.Draft202012Validator) -> None:
    with pytest.raises(RmkitError):
        parse_recipe(text, parents)
    assert not validator.is_valid(read_yaml(text, "r").data)


@pytest.mark.parametrize("text", BAD)
def test_bad_recipes_fit_neither(text: str, validator: jsonschema.Draft202012Validator) -> None:
    with pytest.raises(RmkitError):
        parse_recipe(text)
    assert not validator.is_valid(read_yaml(text, "r").data)


def test_the_recipe_of_the_guide() -> None:
    recipe = parse_recipe(DESIGN, Path("folder/r.yaml"))
    assert recipe.adapters[0] == AdapterEntry(adapter="adapters/iconqa", parameters={"weight": 1.0})
    assert recipe.adapters[1] == AdapterEntry(adapter="adapters/flickr30k")
    assert recipe.output.rank == EnergyRank(energy=0.99)
    assert recipe.output.for_ == "vllm"
    assert recipe.extras == FirstOf(first="iconqa")
    assert recipe.name == "no"
    assert recipe.place == Path("folder")
    assert recipe.notes == ()


def test_the_text_is_kept_with_its_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"merge_method: linear\r\nadapters: [a]\r\n")
    assert load_recipe(path).text == "merge_method: linear\r\nadapters: [a]\r\n"


def test_every_key_is_documented() -> None:
    definitions = json_schema()["$defs"]
    for name in ("Recipe", "Override", "Output", "Filtered", "Budget", "CtmOptions", "MergekitRecipe", "Slice"):
        for key, value in definitions[name]["properties"].items():
            assert value.get("description"), f"{name}.{key}"


REFERENCES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda text: not UNPRINTABLE.search(text))
FOUND = st.builds(
    Found,
    reference=REFERENCES,
    label=REFERENCES,
    ranks=st.lists(st.integers(1, 64), max_size=3).map(tuple),
    base=st.none() | REFERENCES,
    sites=st.integers(0, 999),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(FOUND, min_size=1, max_size=4))
def test_a_first_recipe_loads(found: list[Found]) -> None:
    recipe = parse_recipe(starter(found))
    assert [entry.adapter for entry in recipe.adapters] == [each.reference for each in found]
    assert recipe.parameters == {"variant": "official", "density": 0.2, "gain": 2.0}
    bases = [each.base for each in found if each.base]
    assert recipe.base_model in (bases or [None])


def test_a_first_recipe_reads_well() -> None:
    text = starter([Found("adapters/iconqa", "iconqa", (16,), "org/base", 224), Found("x y: #z", "iconqa2", (8, 16), None, 7)])
    assert "  - adapter: adapters/iconqa  # rank 16, 224 sites, base org/base\n    name: iconqa\n" in text
    assert "# ranks 8 to 16, 7 sites" in text
    assert max(map(len, text.splitlines())) <= 140


KEYS = [
    "merge_method",
    "adapters",
    "parameters",
    "overrides",
    "output",
    "models",
    "base_model",
    "space",
    "pre",
    "extras",
    "slices",
]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["linear", "ties", "robustmerge"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*KEYS, "adapter", "model", "value", "filter", "match", "rank", "density", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=6))
def test_junk_in_the_right_places_never_raises_anything_else(data: dict[str, object]) -> None:
    with contextlib.suppress(RmkitError):
        parse_recipe(json.dumps(data, ensure_ascii=False))


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("abc:-[]{}&*!|>'\"#%@`, \n\t?<~01.é\x00\ufeff\u2028"), max_size=60) | st.text(max_size=60))
def test_random_text_never_raises_anything_else(text: str) -> None:
    with contextlib.suppress(RmkitError):
        parse_recipe(text)


def test_reading_a_recipe_room_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "huggingface_hub", "mergekit")
    code = f"import sys, robustmerge_kit.recipe; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"

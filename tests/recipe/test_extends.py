"""`extends`: what wins, where relative paths start, where mistakes are reported, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from robustmerge_kit.errors import RecipeError, RmkitError
from robustmerge_kit.recipe import Recipe, load_recipe

BASE = """
merge_method: ties
adapters: [a, b]
parameters: {density: 0.2, gain: 2.0}
overrides: [{match: "*.mlp.*", parameters: {density: 0.1}}]
pre: [norm_balance]
output: {rank: {energy: 0.9}, path: out, dtype: float32}
extras: {first: a}
space: {ctm: {rank: 4}}
meta: {author: someone, year: 2025}
seed: 1
name: base
"""


def write(place: Path, **files: str) -> Path:
    for name, text in files.items():
        path = place / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def load(place: Path, text: str, **settings: Any) -> Recipe:
    (place / "child.yaml").write_text(text)
    return load_recipe(place / "child.yaml", settings)


def refusal(place: Path, text: str, **settings: Any) -> list[str]:
    with pytest.raises(RmkitError) as caught:
        load(place, text, **settings)
    errors = getattr(caught.value, "errors", (caught.value,))
    assert {error.exit_code for error in errors} == {2}
    return [str(error).replace(f"{place}/", "") for error in errors]


PRECEDENCE: dict[str, dict[str, Any]] = {
    "": {"merge_method": "ties", "seed": 1, "name": "base", "parameters": {"density": 0.2, "gain": 2.0}},
    "seed: 2\nname: mine\n": {"seed": 2, "name": "mine"},
    "parameters: {gain: 1.0}\n": {"parameters": {"density": 0.2, "gain": 1.0}},
    "parameters: {density: [0.1, 0.2]}\n": {"parameters": {"density": [0.1, 0.2], "gain": 2.0}},
    "parameters: {gain: }\n": {"parameters": {"density": 0.2}},
    "parameters:\nspace: ~\n": {"parameters": None, "space": None},
    "adapters: [c]\n": {"adapters": ["c"]},
    "overrides: []\n": {"overrides": []},
    "pre: [pico]\n": {"pre": ["pico"]},
    "output: {path: mine}\n": {"output": {"rank": {"energy": 0.9}, "path": "mine", "dtype": "float32"}},
    "output: {rank: {budget: {average: 4}}}\n": {"output.rank": {"budget": {"average": 4.0}}},
    "extras: drop\n": {"extras": "drop"},
    "space: {core: {basis: deltas}}\n": {"space": {"core": {"basis": "deltas"}}},
    "meta: {year: 2026}\n": {"meta": {"author": "someone", "year": 2026}},
    "meta: words\n": {"meta": "words"},
}


@pytest.mark.parametrize("text", PRECEDENCE)
def test_what_wins(text: str, tmp_path: Path) -> None:
    recipe = load(write(tmp_path, base=BASE), "extends: base.yaml\n" + text)
    told = recipe.model_dump(by_alias=True, mode="json", exclude_unset=True)
    for key, expected in PRECEDENCE[text].items():
        found: Any = told
        for step in key.split("."):
            found = found.get(step)
        if key == "adapters":
            found = [entry["adapter"] for entry in found]
        assert found == expected
    assert recipe.extends is None


def test_three_generations(tmp_path: Path) -> None:
    write(tmp_path, base=BASE, middle="extends: base.yaml\nseed: 2\nparameters: {gain: 3.0}\n")
    recipe = load(tmp_path, "extends: middle.yaml\nparameters: {density: 0.5}\n")
    assert (recipe.seed, recipe.parameters) == (2, {"density": 0.5, "gain": 3.0})
    assert [file.reference for file in recipe.origin.files] == ["child.yaml", "middle.yaml", "base.yaml"]
    assert recipe.origin.composed


def test_a_recipe_alone_stays_as_it_is(tmp_path: Path) -> None:
    recipe = load(tmp_path, BASE)
    assert recipe.text == BASE
    assert not recipe.origin.composed


def test_relative_paths_start_where_they_stand(tmp_path: Path) -> None:
    parent = "merge_method: linear\nadapters: [x/y, ./z, ../w, org/far, 'org/far@v1:sub', /abs, 'x:y']\n"
    write(tmp_path, shared__base=parent + "base_model: base\noutput: {path: ../merged}\n")
    (tmp_path / "shared" / "x" / "y").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "child.yaml").write_text("extends: ../shared/base.yaml\n")
    recipe = load_recipe(tmp_path / "recipes" / "child.yaml")
    assert [entry.adapter for entry in recipe.adapters] == [
        "../shared/x/y",
        "../shared/z",
        "../shared/../w",
        "org/far",
        "org/far@v1:sub",
        "/abs",
        "../shared/x:y",
    ]
    assert recipe.base_model == "../shared/base"
    assert recipe.output.path == "../shared/../merged"
    (tmp_path / "recipes" / "child.yaml").write_text("extends: ../shared/base.yaml\nadapters: [x/y]\noutput: {path: m}\n")
    recipe = load_recipe(tmp_path / "recipes" / "child.yaml")
    assert ([entry.adapter for entry in recipe.adapters], recipe.output.path) == (["x/y"], "m")


def test_a_folder_beside_the_child_does_not_hide_the_hub_from_the_parent(tmp_path: Path) -> None:
    write(tmp_path, shared__base="merge_method: linear\nadapters: [org/far]\n")
    (tmp_path / "org" / "far").mkdir(parents=True)
    assert load(tmp_path, "extends: shared/base.yaml\n").adapters[0].adapter == "hf://org/far"


def test_through_a_link_to_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "real", recipes__base="merge_method: linear\nadapters: [../a]\n")
    (tmp_path / "real" / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "recipes")
    recipe = load(tmp_path, "extends: link/base.yaml\n")
    assert (recipe.place / recipe.adapters[0].adapter).resolve() == tmp_path / "real" / "a"


def test_mergekits_form(tmp_path: Path) -> None:
    parent = "merge_method: ties\nbase_model: ./b\nmodels:\n  - {model: ./b+./x, parameters: {weight: 1}}\ndtype: float16\n"
    write(tmp_path, shared__base=parent)
    for name in ("b", "x"):
        (tmp_path / "shared" / name).mkdir()
    recipe = load(tmp_path, "extends: shared/base.yaml\nout_dtype: bfloat16\nparameters: {lambda: 0.5}\n")
    assert [entry.adapter for entry in recipe.adapters] == ["./shared/x"]
    assert (recipe.base_model, recipe.output.dtype, recipe.parameters["gain"]) == ("./shared/b", "bfloat16", 0.5)


WRONG: dict[str, list[str]] = {
    "extends: none.yaml\n": [
        "child.yaml:1:10: extends none.yaml: no such file\nhint: a path starts at the folder of the recipe that names it"
    ],
    "extends: [base.yaml]\n": [
        "child.yaml:1:10: extends must be text, a recipe's reference, got ['base.yaml']\n"
        "hint: a recipe extends one other recipe"
    ],
    "extends:\n": [
        "child.yaml:1:1: extends must be text, a recipe's reference, got nothing\nhint: a recipe extends one other recipe"
    ],
    "extends: sub\n": ["child.yaml:1:10: extends sub: is a folder, not a recipe\nhint: name the YAML file"],
    "extends: list.yaml\n": ["list.yaml:1:1: a recipe is a mapping of keys, got ['a']\nhint: start with merge_method: NAME"],
    "extends: tagged.yaml\n": [
        "tagged.yaml:1:15: YAML tags are not read, got !!str\nhint: write the plain value without the tag"
    ],
    "extends: child.yaml\n": ["child.yaml:1:10: recipes extend each other in a circle: child.yaml -> child.yaml"],
    "extends: sub/circle.yaml\n": [
        "sub/circle.yaml:1:10: recipes extend each other in a circle: child.yaml -> sub/circle.yaml -> sub/../child.yaml"
    ],
    "extends: wrong.yaml\nsed: 1\noutput: {rank: 0}\n": [
        "child.yaml:2:1: unknown key 'sed'\nhint: did you mean seed?",
        "child.yaml:3:16: output.rank must be at least 1, got 0",
        "wrong.yaml:3:23: parameters.density must be at most 1, got 2",
        "wrong.yaml:4:1: unknown key 'sedd'\nhint: did you mean seed?",
    ],
    "extends: wrong.yaml\nparameters: {density: 0.1}\nsedd:\n": [],
    "extends: base.yaml\nparameters: {dens: }\n": [
        "child.yaml:2:14: ties has no parameter 'dens'\nhint: did you mean density?",
        "child.yaml:2:19: parameters.dens has no value\nhint: write one, or delete the key",
    ],
    "extends: base.yaml\nmodels: [{model: a}]\n": [
        "child.yaml:2:1: models and adapters cannot stand in one recipe\nhint: keep one of them"
    ],
    "extends: deep/1.yaml\n": [],
}


@pytest.mark.parametrize("text", [text for text, expected in WRONG.items() if expected])
def test_mistakes_are_reported_in_their_files(text: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        base=BASE,
        list="- a\n",
        tagged="merge_method: !!str linear\n",
        wrong="merge_method: ties\nadapters: [a]\nparameters: {density: 2}\nsedd: 1\n",
        sub__circle="extends: ../child.yaml\n",
    )
    assert refusal(tmp_path, text) == WRONG[text]


def test_what_the_child_replaces_is_not_judged(tmp_path: Path) -> None:
    write(tmp_path, wrong="merge_method: ties\nadapters: [a]\nparameters: {density: 2}\nsedd: 1\n")
    assert load(tmp_path, "extends: wrong.yaml\nparameters: {density: 0.1}\nsedd:\n").parameters == {"density": 0.1}


def test_chains_end(tmp_path: Path) -> None:
    write(tmp_path, **{f"r{n}": f"extends: r{n + 1}.yaml\n" for n in range(9)}, r9=BASE)
    with pytest.raises(RecipeError, match=r"more than 8 recipes extend each other: .*r0.yaml -> .*r9.yaml"):
        load_recipe(tmp_path / "r0.yaml")
    assert load_recipe(tmp_path / "r1.yaml").merge_method == "ties"

"""One file that stands for many recipes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from robustmerge_kit.errors import RecipeError, RmkitError
from robustmerge_kit.recipe import expand, parse_recipe, parse_variant

BASE: dict[str, Any] = {
    "merge_method": "ties",
    "adapters": ["a", {"adapter": "b", "parameters": {"weight": 0.5}}],
    "output": {"path": "out/base"},
}


def variants(place: Path, **keys: Any):
    text = json.dumps({**BASE, **keys})
    found = expand(text, place / "grid.yaml")
    assert found is not None
    return found


def test_an_ordinary_recipe_is_none(tmp_path: Path) -> None:
    assert expand(json.dumps(BASE), tmp_path / "x.yaml") is None
    assert expand("- a list", tmp_path / "x.yaml") is None


def test_every_combination_the_last_name_fastest(tmp_path: Path) -> None:
    found = variants(tmp_path, matrix={"merge_method": ["ties", "dare_ties"], "density": [0.1, 0.2]})
    assert [each.name for each in found] == ["ties-0.1", "ties-0.2", "dare_ties-0.1", "dare_ties-0.2"]
    recipes = [parse_variant(each) for each in found]
    assert [(r.merge_method, r.parameters["density"]) for r in recipes] == [
        ("ties", 0.1),
        ("ties", 0.2),
        ("dare_ties", 0.1),
        ("dare_ties", 0.2),
    ]
    assert [each.output for each in found] == [tmp_path / "out/base" / each.name for each in found]


WAYS = {
    "merge_method": ("cat", lambda r: r.merge_method),
    "density": (0.3, lambda r: r.parameters["density"]),
    "parameters.density": (0.3, lambda r: r.parameters["density"]),
    "adapters[1].parameters.weight": (0.25, lambda r: r.adapters[1].parameters["weight"]),
    "adapters[0].parameters.weight": (0.25, lambda r: r.adapters[0].parameters["weight"]),
    "output.rank": (3, lambda r: r.output.rank),
    "seed": (5, lambda r: r.seed),
    "space": ({"ctm": {"rank": 2}}, lambda r: r.space),
    "adapters": (["c"], lambda r: [entry.adapter for entry in r.adapters]),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_name_is_the_way_to_a_key(name: str, tmp_path: Path) -> None:
    value, look = WAYS[name]
    (found,) = variants(tmp_path, matrix={name: [value]})
    assert look(parse_variant(found)) == value


def test_a_variant_is_a_recipe_of_its_own(tmp_path: Path) -> None:
    found = variants(tmp_path, matrix={"density": [1e-05, 0.5], "gain": [2]}, name="no")
    for each in found:
        assert each.path == tmp_path / "grid.yaml"
        alone = parse_recipe(each.text, tmp_path / "grid.yaml")
        assert alone == parse_variant(each)
        assert alone.text == each.text
        assert alone.name == "no", "text that other YAML would take for false"
    assert expand(found[0].text, tmp_path / "again.yaml") is None


def test_a_recipe_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "ties.yaml").write_text(json.dumps(BASE))
    found = expand('recipe: base/ties.yaml\nmatrix: {density: [0.1]}\noutput: "m/{density}-x"\n', tmp_path / "grid.yaml")
    assert found is not None
    assert found[0].path == tmp_path / "base" / "ties.yaml", "relative inputs start from the recipe's folder"
    assert found[0].output == tmp_path / "m/0.1-x", "the pattern from the matrix's"
    assert parse_variant(found[0]).place == tmp_path / "base"


def test_exclude_and_include(tmp_path: Path) -> None:
    found = variants(
        tmp_path,
        matrix={"merge_method": ["ties", "dare_ties"], "density": [0.1, 0.2]},
        exclude=[{"merge_method": "dare_ties", "density": 0.1}],
        include=[{"merge_method": "cat"}],
    )
    assert [each.name for each in found] == ["ties-0.1", "ties-0.2", "dare_ties-0.2", "cat"]
    (alone,) = variants(tmp_path, matrix={}, include=[{"seed": 4}])
    assert parse_variant(alone).seed == 4


OUTPUTS = {
    "m/{density}": "m/0.1",
    "m/{merge_method}/{density}": "m/ties/0.1",
    "plain": "plain/ties-0.1",
}


@pytest.mark.parametrize("pattern", OUTPUTS)
def test_where_results_go(pattern: str, tmp_path: Path) -> None:
    (found,) = variants(tmp_path, matrix={"merge_method": ["ties"], "density": [0.1]}, output={"path": pattern})
    assert found.output == tmp_path / OUTPUTS[pattern]
    assert parse_variant(found).output.path == OUTPUTS[pattern], "it says so itself"


NAMES = {
    "a list": ([0.1, 0.3], "0.1-0.3"),
    "a path": ("../../etc/passwd", "etc-passwd"),
    "true": (True, "true"),
    "a mapping": ({"energy": 0.9}, "0"),
    "very long text": ("x" * 500, "0"),
    "dots": ("..", "0"),
    "nothing": (None, "null"),
}


@pytest.mark.parametrize("case", NAMES)
def test_values_as_names(case: str, tmp_path: Path) -> None:
    value, name = NAMES[case]
    (found,) = variants(tmp_path, matrix={"gain": [value]}, output={"path": "m/{gain}"})
    assert (found.name, found.output) == (name, tmp_path / "m" / name)


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    found = variants(tmp_path, matrix={"density": [[0.1, 0.2], 0.1], "gain": [3, [0.2, 3]]})
    assert len({each.name for each in found}) == 4


MISTAKES = {
    "matrix: 3": "grid.yaml:1:9: matrix must be a mapping of names to lists of values, got 3",
    "matrix: {}": "grid.yaml:1:9: matrix must be a mapping of names to lists of values, got {}",
    "matrix: {density: 0.1}": "grid.yaml:1:19: matrix.density must be a list of values, got 0.1",
    "matrix: {density: []}": "grid.yaml:1:19: matrix.density must be a list of values, got []",
    "matrix: {'a b': [1]}": "grid.yaml:1:10: 'a b' is not the way to a key of a recipe",
    "matrix: {'adapters[7].weight': [1]}": "grid.yaml:1:33: adapters[7].weight: the recipe has no such place",
    "matrix: {merge_method.x: [1]}": "grid.yaml:1:27: merge_method.x: the recipe has no such place, but 'ties'",
    "matrix: {density: [0.1]}\nexclude: [{densiti: 0.1}]": "grid.yaml:2:12: 'densiti' is not in the matrix",
    "matrix: {density: [0.1]}\nexclude: [{density: 0.2}]": "grid.yaml:2:11: excludes nothing",
    "matrix: {density: [0.1]}\ninclude: {density: 0.2}": "grid.yaml:2:10: include must be a list of {name: value}",
    "matrix: {density: [0.1]}\noutput: {path: 'm/{gain}'}": "grid.yaml:2:16: {gain} is not a name of this combination",
    "recipe: base.yaml\nmatrix: {density: [0.1]}\nadapters: [a]": "grid.yaml:3:1: unknown key 'adapters' beside `recipe`",
    "recipe: 3\nmatrix: {density: [0.1]}": "grid.yaml:1:9: recipe must be text, got 3",
    "recipe: nowhere.yaml\nmatrix: {density: [0.1]}": "nowhere.yaml: no such file",
    "recipe: grid2.yaml\nmatrix: {density: [0.1]}": "grid2.yaml:1:1: is a matrix itself",
    f"matrix: {{gain: {[1] * 101}, seed: {[1] * 101}}}": "the matrix has 10201 combinations, the limit is 10000",
}


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_in_the_matrix(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(json.dumps(BASE))
    Path("grid2.yaml").write_text("matrix: {density: [1]}\n")
    base = "" if "recipe:" in text else "\nmerge_method: ties\nadapters: [a, b]\n"
    with pytest.raises(RecipeError) as caught:
        expand(text + base, Path("grid.yaml"))
    assert MISTAKES[text] in str(caught.value)


def test_mistakes_in_a_variant_are_told_where_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("merge_method: ties\nadapters:\n  - a\n  - adaptr: b\n")
    found = expand("recipe: base.yaml\nmatrix:\n  merge_method: [ties, tees]\n  density: [0.1, 7]\n", Path("grid.yaml"))
    assert found is not None
    said: list[str] = []
    for each in found:
        with pytest.raises(RmkitError) as caught:
            parse_variant(each)
        said.append(str(caught.value))
    assert all("base.yaml:4:5: unknown key 'adaptr'" in text for text in said)
    assert ["grid.yaml:4:18: parameters.density must be at most 1, got 7" in text for text in said[:2]] == [False, True]
    assert all("grid.yaml:3:24: no merge method is called 'tees'" in text for text in said[2:])


PAGE = Path(__file__).parents[2] / "docs" / "batch.md"
SHOWN = [text for text in re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE) if "matrix:" in text]


@pytest.mark.parametrize("number", range(len(SHOWN)))
def test_what_the_documentation_shows_works(number: int, tmp_path: Path) -> None:
    (tmp_path / "ties.yaml").write_text(json.dumps(BASE))
    found = expand(SHOWN[number], tmp_path / "grid.yaml")
    assert found is not None
    assert len({each.output for each in found}) == len(found) == (6, 3)[number]
    for each in found:
        parse_variant(each)

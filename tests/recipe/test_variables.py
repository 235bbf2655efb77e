"""`vars` and `--set`: types, uses, mistakes, bounds."""

from pathlib import Path
from typing import Any

import pytest

from robustmerge_kit.errors import RmkitError, UsageError
from robustmerge_kit.recipe import Recipe, parse_recipe, parse_settings
from robustmerge_kit.recipe.write import as_yaml
from robustmerge_kit.recipe.yaml_text import read_yaml

HEAD = "merge_method: ties\nadapters: [a, b]\n"
VARS = "vars: {number: 0.5, whole: 3, word: x, flag: true, list: [0.1, 0.2], names: [a, b], none: []}\n"


def load(text: str, *words: str) -> Recipe:
    return parse_recipe(HEAD + VARS + text, Path("r.yaml"), parse_settings(words))


USES: dict[tuple[str, ...], dict[str, Any]] = {
    ("parameters: {density: <number>}",): {"parameters": {"density": 0.5}},
    ("parameters: {density: <list>}",): {"parameters": {"density": [0.1, 0.2]}},
    ("parameters: {density: [<number>, 1]}",): {"parameters": {"density": [0.5, 1]}},
    ("parameters: {normalize: <flag>}",): {"parameters": {"normalize": True}},
    ("seed: <whole>",): {"seed": 3},
    ("name: <word>",): {"name": "x"},
    ("name: <word>-<number>-<whole>-<flag>-<word>",): {"name": "x-0.5-3-true-x"},
    ("name: '<word> < 3 > 2'",): {"name": "x < 3 > 2"},
    ("meta: <b><word></b> <other>",): {"meta": "<b>x</b> <other>"},
    ("meta: {names: <names>, none: <none>}",): {"meta": {"names": ["a", "b"], "none": []}},
    ("seed: <whole>", "whole=7"): {"seed": 7},
    ("seed: <whole>", "whole=7", "whole=8"): {"seed": 8},
    ("parameters: {density: <number>}", "number=1"): {"parameters": {"density": 1.0}},
    ("parameters: {density: <number>}", "number=1e-3"): {"parameters": {"density": 1e-3}},
    ("parameters: {density: <list>}", "list=[1, 0.5]"): {"parameters": {"density": [1.0, 0.5]}},
    ("name: <word>", "word=1e-3"): {"name": "1e-3"},
    ("name: <word>", "word=a=b: [c"): {"name": "a=b: [c"},
    ("name: <word>", "word=<number>"): {"name": "<number>"},
    ("parameters: {normalize: <flag>}", "flag=false"): {"parameters": {"normalize": False}},
    ("meta: {names: <names>}", "names=[c]"): {"meta": {"names": ["c"]}},
    ("meta: {names: <none>}", "none=[c, 1, true]"): {"meta": {"names": ["c", 1, True]}},
}


@pytest.mark.parametrize("case", USES)
def test_uses(case: tuple[str, ...]) -> None:
    recipe = load(*case)
    told = recipe.model_dump()
    assert {key: told[key] for key in USES[case]} == USES[case]
    assert "vars" not in recipe.text
    assert parse_recipe(recipe.text).model_dump() == {**told, "vars": {}}


def test_types_are_those_of_the_defaults() -> None:
    values = load("", "number=2").vars
    assert {name: type(value) for name, value in values.items()} == {
        "number": float,
        "whole": int,
        "word": str,
        "flag": bool,
        "list": list,
        "names": list,
        "none": list,
    }


def test_values_may_come_typed() -> None:
    recipe = parse_recipe(HEAD + VARS + "parameters: {density: <list>}\n", None, {"list": [0.3], "number": 1})
    assert (recipe.parameters, recipe.vars["number"]) == ({"density": [0.3]}, 1.0)


def test_a_list_of_adapters() -> None:
    text = "merge_method: ties\nvars: {tasks: [a, org/b]}\nadapters: <tasks>\n"
    assert [entry.adapter for entry in parse_recipe(text).adapters] == ["a", "org/b"]
    text = "merge_method: ties\nvars: {task: a}\nadapters: [run/<task>, {adapter: '<task>'}]\n"
    assert [entry.adapter for entry in parse_recipe(text).adapters] == ["run/a", "a"]


def test_without_vars_nothing_is_replaced() -> None:
    assert parse_recipe(HEAD + "name: <word>\n").name == "<word>"
    assert parse_recipe(HEAD + "name: ${HOME} $HOME\nvars: {HOME: x}\n").name == "${HOME} $HOME"


WRONG: dict[tuple[str, ...], list[str]] = {
    ("name: <wrd>\nseed: <seed>\n",): [
        "r.yaml:4:7: no variable is called 'wrd'\nhint: did you mean word?",
        "r.yaml:5:7: no variable is called 'seed'\nhint: known here: number, whole, word, flag, list, names, none",
    ],
    ("name: a-<list>\n",): ["r.yaml:4:7: <list> is a list and cannot stand inside text\nhint: use it as a whole value"],
    ("seed: <number>\n",): ["r.yaml:4:7: seed must be a whole number, got 0.5"],
    ("parameters: {density: <whole>}\n",): ["r.yaml:4:23: parameters.density must be at most 1, got 3"],
    ("parameters: {density: [0.1, <word>]}\n",): ["r.yaml:4:29: parameters.density[1] must be a number, got 'x'"],
    ("", "numbr=1"): ["--set numbr: r.yaml has no variable 'numbr'\nhint: did you mean number?"],
    ("", "number=x", "flag=yes", "list=1", "names=[1]", "none=[[1]]", "number2=3"): [
        "--set number: must be a number, like its default 0.5, got 'x'",
        "--set flag: must be true or false, like its default true, got 'yes'",
        "--set list: must be a list, each a number, like its default [0.1, 0.2], got '1'",
        "--set names: must be a list, each text, like its default ['a', 'b'], got '[1]'",
        "--set none: must be a list, like its default [], got '[[1]]'",
        "--set number2: r.yaml has no variable 'number2'\nhint: did you mean number?",
    ],
    ("", "whole=0.5"): [
        "--set whole: must be a whole number, like its default 3, got '0.5'\n"
        "hint: its default in r.yaml:3:28 is a whole number; 3.0 there would allow fractions"
    ],
    ("", "number="): ["--set number: must be a number, like its default 0.5, got ''"],
    ("", "number=.nan"): ["--set number: must be a number, like its default 0.5, got '.nan'"],
    ("", "list=[1, .inf]"): ["--set list: must be a list, each a number, like its default [0.1, 0.2], got '[1, .inf]'"],
    ("", "number=[unclosed"): ["--set number: must be a number, like its default 0.5, got '[unclosed'"],
    ("", "number=1\nseed: 2"): ["--set number: must be a number, like its default 0.5, got '1\\nseed: 2'"],
}


def messages(*case: str) -> list[str]:
    with pytest.raises(RmkitError) as caught:
        load(*case)
    errors = getattr(caught.value, "errors", (caught.value,))
    assert {error.exit_code for error in errors} == {2}
    return [str(error) for error in errors]


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(case: tuple[str, ...]) -> None:
    assert messages(*case) == WRONG[case]


DECLARED: dict[str, str] = {
    "vars: [a]\n": "recipe:3:7: vars must be a mapping (name: default), got ['a']",
    "vars: {a-b: 1}\n": "recipe:3:8: 'a-b' cannot be the name of a variable",
    "vars: {1a: 1}\n": "recipe:3:8: '1a' cannot be the name of a variable",
    "vars: {a: }\n": "recipe:3:10: vars.a has no value",
    "vars: {a: {b: 1}}\n": "recipe:3:11: vars.a must be a number, true or false, text or a list of these",
    "vars: {a: [[1]]}\n": "recipe:3:11: vars.a must be a number, true or false, text or a list of these",
    "vars: {a: [{b: 1}]}\n": "recipe:3:11: vars.a must be a number, true or false, text or a list of these",
    "vars: {a: .inf}\n": "recipe:3:11: vars.a must be finite, got inf",
}


@pytest.mark.parametrize("text", DECLARED)
def test_declarations(text: str) -> None:
    with pytest.raises(RmkitError) as caught:
        parse_recipe(HEAD + text)
    assert str(caught.value).startswith(DECLARED[text])


def test_settings_without_vars() -> None:
    with pytest.raises(UsageError, match="recipe has no variable 'a'\nhint: declare it in the recipe"):
        parse_recipe(HEAD, None, {"a": "1"})


@pytest.mark.parametrize("word", ["density", "=1", "a b=1", "-x=1", ""])
def test_words_that_set_nothing(word: str) -> None:
    with pytest.raises(UsageError, match="must be name=value"):
        parse_settings([word])


def test_a_parents_variables(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "merge_method: ties\nvars: {d: 0.2, tag: base}\nadapters: [a]\nparameters: {density: <d>}\nname: <tag>-<d>\n"
    )
    path = tmp_path / "child.yaml"
    assert parse_recipe("extends: base.yaml\n", path, {"d": "0.4"}).name == "base-0.4"
    assert parse_recipe("extends: base.yaml\nvars: {d: 1}\n", path).name == "base-1"
    assert parse_recipe("extends: base.yaml\nvars: {tag: mine, more: 2}\nseed: <more>\n", path).name == "mine-0.2"
    for text in ("vars: {d: x}", "vars: {tag: 1}", "vars: {tag: [a]}"):
        with pytest.raises(RmkitError, match=r"child.yaml:2:\d+: vars.\w+ must be .*, as in .*base.yaml:2:\d+, got"):
            parse_recipe(f"extends: base.yaml\n{text}\n", path)
    with pytest.raises(RmkitError, match=r"base.yaml:4:23: no variable is called 'd'"):
        parse_recipe("extends: base.yaml\nvars: {d: }\n", path)


def test_variables_do_not_refer_to_each_other() -> None:
    recipe = parse_recipe(HEAD + "vars: {a: <b>, b: x}\nname: <a>\n")
    assert recipe.name == "<b>"


def test_bounds_hold_for_what_is_written_out() -> None:
    long = f"vars: {{a: {'x' * 50_000}}}\n"
    with pytest.raises(RmkitError, match="larger than 1000000 bytes once its variables are written out"):
        parse_recipe(HEAD + long + f"name: {'<a>' * 30}\n")
    many = f"vars: {{a: [{'1, ' * 5000}]}}\n"
    with pytest.raises(RmkitError, match="more than 20000 values once its variables are written out"):
        parse_recipe(HEAD + many + "meta: {a: [<a>, <a>, <a>, <a>]}\n")


def test_aliases_are_replaced_each_for_itself() -> None:
    text = "vars: {d: 0.5}\nparameters: &p {density: <d>}\noverrides: [{match: '*', parameters: *p}]\n"
    recipe = parse_recipe(HEAD + text)
    assert recipe.parameters == recipe.overrides[0].parameters == {"density": 0.5}


def test_data_written_out_reads_back() -> None:
    odd = {
        "a": "no",
        "b": "1e-5",
        "c": ["x: y", "#", ""],
        "d": 1e-05,
        "e": True,
        "f": "a\nb",
        "g": {"h": [[1, 2.5]]},
        "i": "<<",
    }
    assert read_yaml(as_yaml(odd, "# head\n"), "").data == odd

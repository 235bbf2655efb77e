"""Recipes from strangers: nothing in them runs or is imported, they hold no secrets, and a small one costs little."""

import sys
import time
from pathlib import Path

import pytest

from robustmerge_kit.errors import RmkitError
from robustmerge_kit.recipe import load_recipe, parse_recipe

CPU_SECONDS = 30.0
HEAD = "merge_method: ties\nadapters: [a, b]\n"

CODE = [
    "!!python/object/apply:os.system ['touch mark']",
    "!!python/object/new:os.mkdir ['mark']",
    "!!python/name:antigravity.fly_turtle",
    "!!python/module:antigravity",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch mark']",
    "!include /etc/passwd",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
]


@pytest.mark.parametrize("value", CODE)
def test_tags_are_refused(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (f"{HEAD}meta: {value}\n", f"? {value}\n: 1\n", f"%TAG ! tag:yaml.org,2002:python/\n---\nmeta: {value}\n"):
        with pytest.raises(RmkitError):
            parse_recipe(text)
    assert not list(tmp_path.iterdir())
    assert "antigravity" not in sys.modules


NAMES = ["antigravity", "antigravity:fly", "os.system", "mergekit/antigravity", "mergekit/../x", "../x", "__import__", "eval"]
PLACES = [
    "merge_method: {}\nadapters: [a]\n",
    HEAD + "overrides: [{{match: '*', merge_method: {}}}]\n",
    HEAD + "pre: [{}]\n",
    HEAD + "post: [{{{}: {{}}}}]\n",
    HEAD + "space: {}\n",
    HEAD + "output: {{format: {}}}\n",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_names_import_nothing(name: str, place: str) -> None:
    with pytest.raises(RmkitError):
        parse_recipe(place.format(f"'{name}'"))
    assert "antigravity" not in sys.modules


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
LARGE = {
    "a billion laughs": LAUGHS,
    "laughs in keys": "? &b0 [x]\n: 1\n" + "".join(f"? &b{i} [*b{i - 1}, *b{i - 1}]\n: 1\n" for i in range(1, 40)),
    "900 kB of comments": "#\n" * 450_000 + HEAD,
    "900 kB of blank lines": "\n" * 900_000 + HEAD,
    "a line of 900 kB": f"{HEAD}name: {'b ' * 450_000}\n",
    "a folded text of 300,000 lines": f"{HEAD}meta: >\n{' x' * 3}\n" + " x\n" * 290_000,
    "a tag of 900 kB": f"{HEAD}meta: !{'a' * 900_000} 1\n",
    "180,000 directives": "%FOO\n" * 180_000 + f"---\n{HEAD}",
    "400,000 brackets": HEAD + "meta: " + "[" * 400_000,
    "400,000 questions": "? " * 400_000,
    "300,000 values": HEAD + "meta: [" + "1," * 300_000 + "1]\n",
    "9,000 unknown keys": HEAD + "".join(f"overridez{i}: 1\n" for i in range(9_000)),
    "9,000 unknown parameters": HEAD + "parameters: {" + ", ".join(f"densty{i}: 1" for i in range(9_000)) + "}\n",
    "9,000 overrides": HEAD + "overrides: [" + ", ".join("{match: a}" for _ in range(9_000)) + "]\n",
    "9,000 variables": HEAD + "vars: {" + ", ".join(f"v{i}: 1" for i in range(9_000)) + "}\nname: <v>\n",
    "variables that grow": HEAD + f"vars: {{x: {'q' * 40_000}}}\nname: '{'<x>' * 10_000}'\n",
    "a reference of 40 kB of +": f"merge_method: linear\nmodels: [{{model: '{'a+' * 20_000}'}}]\n",
    "a reference of 40 kB of :": f"merge_method: linear\nadapters: ['{'a:' * 20_000}', b]\nextends: '{'a:' * 20_000}'\n",
    "a glob of 40 kB": f"{HEAD}overrides: [{{match: '{'*a' * 20_000}'}}]\n",
    "a key of 900 kB": f"? {'a' * 900_000}\n: 1\n",
    "a number of 900 kB": f"{HEAD}seed: {'1' * 900_000}\n",
    "endless sweeps": f"{HEAD}space: {{ctm: {{max_iter: 1000000000, tol: 1e-300}}}}\n",
}


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE.keys())
def test_large_recipes_are_refused_or_read_in_bounded_time(text: str) -> None:
    before = time.process_time()
    said = ""
    try:
        parse_recipe(text)
    except RmkitError as error:
        said = str(error)
    assert len(said) < 400_000
    assert time.process_time() - before < CPU_SECONDS


def test_files_without_an_end_are_not_read_to_it(tmp_path: Path) -> None:
    for name in ("/dev/zero", "/proc/self/mem", str(tmp_path)):
        with pytest.raises(RmkitError):
            load_recipe(Path(name))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("extends: /dev/zero\n")
    with pytest.raises(RmkitError):
        load_recipe(recipe)


SECRETS = [
    "adapters: [a, 'https://user:word@example.com/x']",
    "base_model: hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "meta: {note: ghp_abcdefghijklmnopqrstuvwxyzABCDEFGH12}",
    "# hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "name: 'https://example.com/x?token=abcdef&y=1'",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH: 1",
]


@pytest.mark.parametrize("line", SECRETS)
def test_recipes_hold_no_secrets(line: str) -> None:
    with pytest.raises(RmkitError, match=r"recipe:2:[0-9]+: an access token or password stands in the recipe") as caught:
        parse_recipe(f"merge_method: ties\n{line}\n")
    assert "abcdef" not in str(caught.value)
    assert "word@" not in str(caught.value)


def test_what_looks_like_a_secret_and_is_none() -> None:
    for reference in ("git+ssh://git@example.com/a/b.git", "org/hf_model", "git+https://example.com/a.git@main:x"):
        parse_recipe(f"merge_method: ties\nadapters: [a, '{reference}']\n")


CONTROLS = ['"\\e[31m"', '"\\u202e"', '"\\ud800"', '"\\0"', '"\\x7f"', '"\\u0085"', '"\\u2028"', '"a\\rb"']


@pytest.mark.parametrize("value", CONTROLS)
def test_control_characters_are_refused(value: str) -> None:
    for text in (
        f"{HEAD}name: {value}\n",
        f"{HEAD}{value}: 1\n",
        f"{HEAD}meta: {{a: [{value}]}}\n",
        f"{HEAD}overrides: [{value}]\n",
    ):
        with pytest.raises(RmkitError) as caught:
            parse_recipe(text)
        assert str(caught.value).isprintable() or "\n" in str(caught.value)
        assert not set(str(caught.value)) & set("\x1b\u202e\ud800\0\x7f\x85\u2028\r")

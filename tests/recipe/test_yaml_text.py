"""YAML text: scalars of YAML 1.2, positions, what is refused, bounded time on hostile text."""

import itertools
import math
import time

import pytest

from robustmerge_kit.errors import RecipeError, RmkitError
from robustmerge_kit.recipe.yaml_text import MAX_BYTES, read_yaml

SCALARS = [
    ("1e-5", 1e-5),
    ("1E+3", 1000.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("no", "no"),
    ("yes", "yes"),
    ("on", "on"),
    ("true", True),
    ("False", False),
    ("~", None),
    ("", None),
    ("null", None),
    ("0x1F", 31),
    ("0o17", 15),
    ("017", 17),
    ("-3", -3),
    ("1_000", "1_000"),
    ("1:30", "1:30"),
    ("2024-01-01", "2024-01-01"),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("'1'", "1"),
    ('"true"', "true"),
    ("${HOME}", "${HOME}"),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = read_yaml(f"a: {text}", "r").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read() -> None:
    assert math.isnan(read_yaml("a: .nan", "r").data["a"])


def test_an_old_yaml_version_does_not_change_scalars() -> None:
    assert read_yaml("%YAML 1.1\n---\na: no\nb: 010\n", "r").data == {"a": "no", "b": 10}


def test_every_key_and_value_has_its_position() -> None:
    document = read_yaml("a: 1\nb:\n  - x\n  - {c: 2,  d: [3, 4]}\ne: &n {f: 5}\ng: *n\n", "r")
    assert document.data == {"a": 1, "b": ["x", {"c": 2, "d": [3, 4]}], "e": {"f": 5}, "g": {"f": 5}}
    values = {
        (): (1, 1),
        ("a",): (1, 4),
        ("b",): (3, 3),
        ("b", 0): (3, 5),
        ("b", 1): (4, 5),
        ("b", 1, "c"): (4, 9),
        ("b", 1, "d", 1): (4, 20),
        ("g",): (6, 4),
        ("g", "f"): (5, 11),
        ("b", 1, "absent", 7): (4, 5),
    }
    assert {path: document.value(path)[1:] for path in values} == values
    keys = {("a",): (1, 1), ("b",): (2, 1), ("b", 1, "d"): (4, 13), ("b", 0): (3, 5), (): (1, 1), ("zz",): (1, 1)}
    assert {path: document.key(path)[1:] for path in keys} == keys


REFUSED = [
    ("a: 1\nb: 2\na: 3", "r:3:1: the key 'a' is given twice, first at line 1\nhint: delete one of them"),
    ("a: {b: 1, b: 2}", "r:1:11: the key 'b' is given twice, first at line 1\nhint: delete one of them"),
    ("%YAML 1.3\n---\na: 1", "r: not valid YAML: version minor part can only be 2 or 1, got (1, 3)"),
    ("a: 1\n...\n%YAML 1.3\n---\nb: 2", "r: not valid YAML: version minor part can only be 2 or 1, got (1, 3)"),
    ("a: 1\n---\nb: 2", "r:2:1: a second document starts here\nhint: one file holds one recipe; split it at ---"),
    (
        "a: !!python/object:os.system x",
        "r:1:4: YAML tags are not read, got !!python/object:os.system\nhint: write the plain value without the tag",
    ),
    ("a: !x [1]", "r:1:4: YAML tags are not read, got !x\nhint: write the plain value without the tag"),
    ("1: x", "r:1:1: a key must be text, got 1\nhint: put it in quotes"),
    ("true: x", "r:1:1: a key must be text, got True\nhint: put it in quotes"),
    ("? [a]\n: b", "r:1:3: a key must be text, got a list or mapping\nhint: put it in quotes"),
    ("<<: {a: 1}", "r:1:1: merge keys (<<) are not part of YAML 1.2\nhint: write the keys out, or alias the value"),
    ("a: *b", "r:1:4: the alias *b refers to no anchor\nhint: write &b before the value it stands for"),
    ("a: &b [*b]", "r:1:8: the alias *b stands inside the value it refers to"),
    ("a: [1, 2", "r:1:9: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ("a: b\n\tc: d", "r:2:1: not valid YAML: found character '\\t' that cannot start any token"),
    ("a: \x00", "r:1:4: not valid YAML: the character '\\x00' is not allowed"),
    ("", "r: the recipe is empty\nhint: `rmkit init ADAPTER...` writes a first one"),
    ("# nothing\n", "r: the recipe is empty\nhint: `rmkit init ADAPTER...` writes a first one"),
    ("a: " + "9" * 5000, "r:1:4: the number " + "9" * 57 + "... has more than 30 digits\nhint: put it in quotes if it is text"),
    (" " * (MAX_BYTES + 1), "r: the recipe is larger than 1000000 bytes\nhint: is this a recipe?"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refusals_say_where(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "r")
    assert str(caught.value) == message


def test_all_duplicate_keys_are_told_at_once() -> None:
    with pytest.raises(RmkitError) as caught:
        read_yaml("a: 1\na: 2\nb: 1\nb: 2\n", "r")
    assert str(caught.value).count("is given twice") == 2


def bomb(levels: int) -> str:
    letters = "abcdefghijklmnop"
    lines = [f"a: &a [{', '.join(['x'] * 9)}]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(letters[: levels + 1])]
    return "\n".join(lines)


HOSTILE = {
    "alias bomb": bomb(9),
    "nested flow": "[" * 50_000,
    "nested block": "- " * 50_000,
    "nested mappings": "".join(" " * i + "a:\n" for i in range(500)),
    "chain of aliases": "a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(2000)),
    "keys as values": "? " * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_once(name: str) -> None:
    start = time.process_time()
    with pytest.raises(RecipeError, match=r"nested more than|has more than \d+ values"):
        read_yaml(HOSTILE[name], "r")
    assert time.process_time() - start < 2.5


def test_a_yaml_bomb_takes_less_than_a_second() -> None:
    start = time.process_time()
    with pytest.raises(RecipeError, match="once its aliases are written out"):
        read_yaml(bomb(12), "r")
    assert time.process_time() - start < 1


def test_aliases_within_bounds_are_written_out() -> None:
    assert read_yaml(bomb(2), "r").data["c"][8][8] == ["x"] * 9

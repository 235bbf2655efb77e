"""PEFT's pattern keys: the same decision as PEFT's own function, and no key of a stranger that can hang the program."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from robustmerge_kit.adapters.patterns import Pattern
from robustmerge_kit.adapters.regular import Regular
from robustmerge_kit.errors import InputError

MODULES = [
    "q_proj",
    "xq_proj",
    "a.b.q_proj",
    "model.q_proj",
    "x.model.q_proj",
    "model.layers.0.self_attn.q_proj",
    "",
    "a.qxproj",
]
KEYS = [
    "q_proj", "^model.q_proj", r"model\.q_proj", "q.proj", "(q|k)_proj", r"layers\.\d+\.self_attn\.[qk]_proj",
    "x?q_proj", "a.b.q_proj",
    r".*\.q_proj", "proj", "q_proj$", r"model\.layers\.(0|1)\..*", "q_pro.", "", "(?:q|v)_proj", "[^x]_proj",
]  # fmt: skip


def as_peft(keys: list[str], module: str) -> str | None:
    found = get_pattern_key(keys, module)
    return found if found in keys else None


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("key", KEYS)
def test_one_key_decides_as_in_peft(key: str, module: str) -> None:
    expected = 1 if as_peft([key], module) is not None else None
    assert Pattern({key: 1}, "here").value(module, None) == expected


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text("ab.", max_size=6), unique=True, max_size=5),
    st.text("ab.", min_size=1, max_size=8),
)
def test_plain_keys_decide_as_in_peft(keys: list[str], module: str) -> None:
    found = as_peft(keys, module)
    expected = None if found is None else keys.index(found)
    assert Pattern({key: index for index, key in enumerate(keys)}, "here").value(module, None) == expected


REFUSED = {
    r"(a)\1*": "refers back",
    "(?P<n>a)(?P=n)": "refers back",
    "(?=a)b": r"has a group \(\?=",
    "(?i)a": r"has a group \(\?i",
    "(?>a*)b": r"has a group \(\?>",
    "a++b": "possessive",
    "a**": "repetition of a repetition",
    "*a": "nothing to repeat",
    "a|*b": "nothing to repeat",
    "^*a": "repeats a border",
    "x{3,2}": "ends before it starts",
    "[b-a]": "bad range",
    r"[\d-z]": "bad range",
    "[abc": "ends too early",
    r"\x41": r"the escape \\x",
    "(?P<1>a)": "bad name",
    "a" * 600 + "*": "6.. characters",
    "(" * 30 + "a" + ")" * 30: "nested more than 20",
    "(a{30}){40}": "more than 1000 states",
    "((a{1,50}){1,50}){1,50}": "more than 1000 states",
    "(q_proj": "not a regular expression",
    "a)*": "not a regular expression",
    "a{99999999999}": "more than 1000 times",
}


@pytest.mark.parametrize("key", REFUSED)
def test_keys_that_are_broken_or_have_no_bound(key: str) -> None:
    with pytest.raises(InputError, match=REFUSED[key]):
        Pattern({key: 1}, "here")


HANGING = [
    "(a+)+$",
    "(a|aa)*",
    "((a*)b)*",
    "(a{1,9}){1,9}",
    "(?:x|x)+",
    ".*a.*a.*a.*a.*a.*x",
    "a?" * 80 + "a" * 80,
    "(a|a)" * 80,
]


@pytest.mark.parametrize("key", HANGING)
def test_keys_that_would_hang_a_backtracking_matcher_do_not(key: str) -> None:
    started = time.process_time()
    pattern = Pattern({key: 1}, "here")
    for module in ("a" * 60 + "!", "a." * 200, "aaaa" * 100):
        pattern.value(module, None)
    assert time.process_time() - started < 5


def test_many_keys_are_looked_up() -> None:
    names = [f"model.layers.{i}.mlp.{leaf}" for i in range(500) for leaf in ("up_proj", "down_proj")]
    keys = {("^" + name.replace(".", r"\.") if i % 2 else name): i for i, name in enumerate(names)}
    pattern = Pattern(keys, "here")
    started = time.process_time()
    assert [pattern.value(name, None) for name in names] == list(range(len(names)))
    assert time.process_time() - started < 5
    with pytest.raises(InputError, match="300 regular expressions, more than 256"):
        Pattern({f"a*{i}": 1 for i in range(300)}, "here")


ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", "[a-b.]", r"\w", r"\d", "(a|b)", "(?:ab|)", "(b.)", "^", "$", r"\b", "x{", "[]a]"]
)
SIGNS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "{2}", "{1,2}", "{,1}", "{1,}?"])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(ATOMS, SIGNS), max_size=5), st.booleans(), st.text("ab.x1{]", max_size=7))
def test_the_subset_matches_as_pythons_own(parts: list[tuple[str, str]], branch: bool, text: str) -> None:
    parts = [(atom, "" if atom in ("^", "$", r"\b") else sign) for atom, sign in parts]
    written = ("|" if branch else "").join(atom + sign for atom, sign in parts)
    assert Regular(written).matches_start(text) == (re.match(written, text) is not None)
    whole = rf"(.*\.)?({written})$"
    assert Regular(whole).matches_start(text) == (re.match(whole, text) is not None)

"""PEFT's pattern keys: the same decision as PEFT's own function, and no key of a stranger that can hang the program."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from robustmerge_kit.adapters.patterns import Pattern
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


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("(a+)+$", "repeats a group"),
        ("(a|aa)*", "repeats a group"),
        ("((a*)b)*", "repeats a group"),
        ("(a{1,9}){1,9}", "repeats a group"),
        ("(?:x|x)+", "repeats a group"),
        (r"(a)\1*", "refers back"),
        ("(?P<n>a)(?P=n)", "refers back"),
        (".*a.*a.*a.*a", "4 repetitions"),
        ("a" * 600 + "*", "600|601 characters"),
        ("(q_proj", "not a regular expression"),
        ("a{99999999999}", "not a regular expression"),
    ],
)
def test_keys_that_could_hang_or_are_broken(key: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        Pattern({key: 1}, "here").value("a" * 60, None)
    assert time.monotonic() - started < 1

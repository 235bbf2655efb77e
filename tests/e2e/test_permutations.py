"""The same bytes for any order of tensors in the files, any memory, any number of workers."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_adapters import content, factors, run, sites, write_adapter, write_recipe

from robustmerge_kit.resources import Resources

SHAPES = {"q_proj": (9, 7), "k_proj": (9, 7), "up_proj": (12, 7)}
WHERE = sites(2, SHAPES)
NAMES = sorted(factors(WHERE, 0))

METHODS: dict[str, dict[str, Any]] = {
    "robustmerge": {},
    "svd": {"output": {"rank": 3}},
    "ties": {"parameters": {"density": 0.5}, "output": {"rank": 4}},
    "dare_linear": {"parameters": {"density": 0.5}, "space": "core"},
}
RANDOM = {"dare_linear"}
"""Their masks are keyed by the hash of the input files, which the order of tensors in a file changes."""


def merged(
    place: Path, order: list[str], method: str, resources: Resources, file: str = "adapter_model.bin"
) -> dict[str, bytes]:
    """Files of a merge whose inputs hold their tensors in the given order."""
    adapters: list[Path] = []
    for i in range(3):
        tensors = factors(WHERE, i)
        ordered = {name: tensors[name] for name in order}
        adapters.append(write_adapter(place / f"adapter{i}", tensors=ordered, where=WHERE, file=file))
    recipe = write_recipe(place, [path.name for path in adapters], method, **METHODS[method])
    run(recipe, place / "out", resources)
    return content(place / "out")


@cache
def reference(method: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        return merged(Path(place), NAMES, method, Resources())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None)
@given(
    order=st.permutations(NAMES),
    workers=st.integers(1, 5),
    memory=st.sampled_from([1, 20_000, 1 << 30]),
    method=st.sampled_from(sorted(METHODS)),
)
def test_bytes_are_the_same_whatever_the_order(order: list[str], workers: int, memory: int, method: str) -> None:
    resources = Resources(workers=workers, memory=memory)
    with tempfile.TemporaryDirectory() as place:
        assert merged(Path(place), NAMES if method in RANDOM else order, method, resources) == reference(method)


@pytest.mark.parametrize("method", sorted(set(METHODS) - RANDOM))
def test_bytes_are_the_same_from_pickles_and_safetensors(method: str, tmp_path: Path) -> None:
    assert merged(tmp_path, NAMES, method, Resources(), "adapter_model.safetensors") == reference(method)

"""`mergekit/<name>`: every registered method answers, and its interface is guarded."""

import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("mergekit", reason="mergekit is not installed")
from mergekit.merge_methods import merge_tensors, registered_methods

from robustmerge_kit import spaces
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.errors import PluginError
from robustmerge_kit.factors import FactorStack, Weights
from robustmerge_kit.methods import mergekit_dense

TWO = {"slerp", "nuslerp", "nearswap", "arcee_fusion"}
PARAMETERS: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.1}, "passthrough": {"scale": 2.0}}
WITHOUT_BASE = {"linear", "karcher", "passthrough", *(TWO - {"nuslerp"})}
WEIGHTED = {"linear", "multislerp", "nuslerp", "task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs"}
WEIGHTED |= {"breadcrumbs_ties", "della", "della_linear"}
BARE = [name.removeprefix(mergekit_dense.PREFIX) for name in mergekit_dense.NAMES]


def stack_of(n: int) -> FactorStack:
    generator = torch.Generator().manual_seed(3)
    a = tuple(torch.randn(3, 10, generator=generator) for _ in range(n))
    b = tuple(torch.randn(12, 3, generator=generator) for _ in range(n))
    weights = [1.0, 0.5, 1.5][:n]
    return FactorStack(a, b, tuple(2 * w for w in weights), Weights.of(weights))


def merged(name: str, n: int, **parameters: Any) -> torch.Tensor:
    method = mergekit_dense.find(mergekit_dense.PREFIX + name)
    stack = stack_of(n)
    site = spaces.represent("full", spaces.NoOptions(), stack)
    draws = KeyedDraws.of(0, "site", [str(t) for t in range(n)])
    delta = spaces.merge(method, site, stack.weights, method.params(**parameters), draws)
    assert isinstance(delta, spaces.Dense)
    return delta.full()


def test_the_names_are_those_that_mergekit_registers() -> None:
    registered = {method.spec.name for method in registered_methods()}
    # `robustmerge_kit.for_mergekit`, once imported, adds our own.
    assert set(BARE) == registered - {"robustmerge"}


@pytest.mark.parametrize("name", BARE)
def test_it_is_mergekit_on_the_dense_deltas(name: str) -> None:
    n = 1 if name == "passthrough" else 2 if name in TWO else 3
    got = merged(name, n, **PARAMETERS.get(name, {}))
    stack = stack_of(n)
    scale = [2.0] * n if name in WEIGHTED else list(stack.coefficients)
    deltas = [c * b @ a for c, a, b in zip(scale, stack.a, stack.b, strict=True)]
    inputs = deltas if name in WITHOUT_BASE else [torch.zeros_like(deltas[0]), *deltas]
    base = None if name in {"linear", "karcher", "passthrough"} else 0
    weights = {"weight": list(stack.weights.each)} if name in WEIGHTED else {}
    want = merge_tensors(inputs, name, base_index=base, parameters={**weights, **PARAMETERS.get(name, {})})
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)


def test_random_masks_depend_on_the_site_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again = merged("dare_linear", 3, density=0.5), merged("dare_linear", 3, density=0.5)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, merged("dare_linear", 3))


@pytest.mark.parametrize(
    ("name", "least", "most"), [("ties", 1, None), ("slerp", 2, 2), ("model_stock", 2, None), ("passthrough", 1, 1)]
)
def test_numbers_of_adapters_are_mergekits(name: str, least: int, most: int | None) -> None:
    assert mergekit_dense.find(mergekit_dense.PREFIX + name).adapters == (least, most)


def test_parameters_are_mergekits_and_closed() -> None:
    params = mergekit_dense.find("mergekit/della").params
    assert params(density=(0.5, 0.6), epsilon=0.1, **{"lambda": 0.3}).each("density", 2) == (0.5, 0.6)
    with pytest.raises(ValueError, match="densty"):
        params(densty=0.5)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PluginError, match="mergekit has no method 'tees'"):
        mergekit_dense.find("mergekit/tees")


def test_a_missing_mergekit_is_a_sentence() -> None:
    code = """
import sys
sys.modules["mergekit"] = None
from robustmerge_kit.errors import PluginError
from robustmerge_kit.methods import mergekit_dense
try:
    mergekit_dense.find("mergekit/ties")
except PluginError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mergekit/ties needs mergekit, which cannot be imported")

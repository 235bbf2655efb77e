"""Every element-wise method against its naive form, in memory and over blocks of rows, with and without equal entries."""

from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest
import torch
from naive import CASES, NAMES

from robustmerge_kit import spaces
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.factors import FactorStack, Weights
from robustmerge_kit.method import Elementwise
from robustmerge_kit.methods import breadcrumbs, consensus, dare, della, emr, pcb, sce, ties

MODULES = (breadcrumbs, consensus, dare, della, emr, pcb, sce, ties)
METHODS: dict[str, Elementwise] = {method.name: method for module in MODULES for method in module.METHODS}


def real(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def whole(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Small integers: products are exact and many of them equal."""
    return torch.randint(-1, 2, shape, generator=generator).double()


def stack_of(
    entries: Callable[..., torch.Tensor], weights: list[float], d_out: int, d_in: int, dtype: torch.dtype
) -> FactorStack:
    generator = torch.Generator().manual_seed(d_out + len(weights))
    a = tuple(entries(generator, 2 + t % 2, d_in).to(dtype) for t in range(len(weights)))
    b = tuple(entries(generator, d_out, 2 + t % 2).to(dtype) for t in range(len(weights)))
    return FactorStack(a, b, tuple(2.0 * w for w in weights), Weights.of(weights))


def expected(name: str, stack: FactorStack, draws: KeyedDraws, parameters: dict[str, Any]) -> torch.Tensor:
    xs = [(c * b.double() @ a.double()).numpy() for c, a, b in zip(stack.coefficients, stack.a, stack.b, strict=True)]

    def uniforms(t: int, purpose: str, x: np.ndarray) -> np.ndarray:
        return draws.uniform(t, purpose, torch.empty(x.shape)).numpy()

    return torch.from_numpy(naive.METHODS[name](xs, stack.weights.each, uniforms, **parameters))


def merged(name: str, stack: FactorStack, draws: KeyedDraws, parameters: dict[str, Any]) -> torch.Tensor:
    method = METHODS[name]
    site = spaces.represent("full", spaces.NoOptions(), stack)
    delta = spaces.merge(method, site, stack.weights, method.params(**parameters), draws)
    assert isinstance(delta, spaces.Dense)
    return delta.full()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-300)) if bool(want.any()) else float(got.norm())


@pytest.mark.parametrize("entries", [1 << 20, 1], ids=["one block", "blocks"])
@pytest.mark.parametrize("weights", [[1.0, -0.7, 0.4, 1.3], [2.0, 1.0]], ids=str)
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=NAMES)
def test_in_float64(name, parameters, weights, entries, monkeypatch) -> None:
    monkeypatch.setattr(spaces, "BLOCK_ENTRIES", {"cpu": entries})
    stack = stack_of(real, weights, 21, 13, torch.float64)
    draws = KeyedDraws.of(5, "site", [str(t) for t in range(len(weights))])
    assert error(merged(name, stack, draws, parameters), expected(name, stack, draws, parameters)) < 1e-6


@pytest.mark.parametrize("entries", [1 << 20, 1], ids=["one block", "blocks"])
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=NAMES)
def test_in_float32_where_products_are_exact(name, parameters, entries, monkeypatch) -> None:
    """Equal magnitudes by the dozen: the cut must fall on the same entries, block by block and at once."""
    monkeypatch.setattr(spaces, "BLOCK_ENTRIES", {"cpu": entries})
    stack = stack_of(whole, [1.0, 2.0, -1.0, 1.0], 40, 11, torch.bfloat16)
    draws = KeyedDraws.of(5, "site", list("abcd"))
    # tanh saturates in float32, where scores of pcb that float64 tells apart become equal.
    tolerance = 1e-3 if name == "pcb" else 1e-5
    assert error(merged(name, stack, draws, parameters), expected(name, stack, draws, parameters)) < tolerance


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=NAMES)
def test_blocks_of_rows_do_not_change_a_bit(name, parameters, monkeypatch) -> None:
    stack = stack_of(whole, [1.0, 2.0, -1.0, 1.0], 140, 9, torch.float32)
    draws = KeyedDraws.of(5, "site", list("abcd"))
    results = []
    for entries in (1 << 20, 1, 36 * 16, 36 * 64):
        monkeypatch.setattr(spaces, "BLOCK_ENTRIES", {"cpu": entries})
        results.append(merged(name, stack, draws, parameters))
    assert all(torch.allclose(x, results[0], rtol=1e-6, atol=0) for x in results[1:])
    if "l1" not in parameters.values() and name != "sce":
        assert all(torch.equal(x, results[0]) for x in results[1:])


@pytest.mark.parametrize(("name", "parameters"), [case for case in CASES if case[0] in ("ties", "pcb")])
@pytest.mark.parametrize("values", [real, whole])
def test_global_scope_is_one_survey_of_all_sites(name, parameters, values, monkeypatch) -> None:
    """Against the naive form of the sites laid side by side; the last adapter lacks the second site."""
    monkeypatch.setattr(spaces, "BLOCK_ENTRIES", {"cpu": 1})
    method, weights = METHODS[name], [1.0, 0.5, 1.3]
    stacks = {f"site{i}": stack_of(values, weights, d_out, 6, torch.float64) for i, d_out in enumerate((12, 17, 30))}
    if name == "ties":
        short = stacks["site1"]
        stacks["site1"] = FactorStack(short.a[:2], short.b[:2], short.coefficients[:2], Weights.of(weights[:2]))
    draws = {site: KeyedDraws.of(0, site, list("abc")[: len(stack)]) for site, stack in stacks.items()}
    represented = {site: spaces.represent("full", spaces.NoOptions(), stack) for site, stack in stacks.items()}
    params = method.params(**parameters, scope="global")
    surveyed = spaces.survey_all(
        method,
        lambda: ((represented[site], draws[site], tuple(range(len(stacks[site])))) for site in stacks),
        len(weights),
        params,
    )
    joined: list[np.ndarray] = []
    for t in range(len(weights)):
        parts = [
            (stack.coefficients[t] * stack.b[t] @ stack.a[t]).numpy().reshape(1, -1)
            for stack in stacks.values()
            if t < len(stack)
        ]
        joined.append(np.concatenate(parts, 1))
    if name == "ties":
        density, trim = parameters.get("density", 1.0), parameters.get("trim", "topk")
        cut = [naive.trimmed(x, density, trim) for x in joined]
        start = [0] * len(weights)
    for site, stack in stacks.items():
        got = spaces.merge(method, represented[site], stack.weights, params, draws[site], surveyed)
        assert isinstance(got, spaces.Dense)
        if name == "ties":
            xs, numel = [], stack.d_out * stack.d_in
            for t in range(len(stack)):
                xs.append(cut[t][:, start[t] : start[t] + numel].reshape(stack.d_out, stack.d_in))
                start[t] += numel
            want = parameters.get("gain", 1.0) * naive.elected(xs, weights, parameters.get("normalize", True))
        else:
            whole_result = naive.pcb(joined, weights, None, **parameters)
            first = sum(stacks[s].d_out * stacks[s].d_in for s in stacks if s < site)
            want = whole_result[:, first : first + stack.d_out * stack.d_in].reshape(stack.d_out, stack.d_in)
        assert error(got.full(), torch.from_numpy(want)) < 1e-6

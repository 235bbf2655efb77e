"""The element-wise methods of `verify` against the entry-by-entry forms, and its bound on what float32 does to entries."""

from typing import Any

import naive
import numpy as np
import pytest
import torch
from naive import CASES, NAMES

from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.methods import find
from robustmerge_kit.verify.entries import METHODS, Site, elementwise
from robustmerge_kit.verify.precision import half_step, unit
from robustmerge_kit.verify.stack import Stack

WEIGHTS = (1.0, -0.7, 0.4, 1.3)


def stack(d_out: int = 21, d_in: int = 13) -> Stack:
    draw = torch.Generator().manual_seed(d_out)
    a = tuple(torch.randn(3, d_in, generator=draw, dtype=torch.float64) for _ in WEIGHTS)
    b = tuple(torch.randn(d_out, 3, generator=draw, dtype=torch.float64) for _ in WEIGHTS)
    places = tuple(range(len(WEIGHTS)))
    return Stack(a, b, tuple(2 * w for w in WEIGHTS), WEIGHTS, places, places, (), (None,) * len(WEIGHTS), True, False)


@pytest.mark.parametrize("tile", [5, 64])
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=NAMES)
def test_entry_by_entry(name: str, parameters: dict[str, Any], tile: int) -> None:
    given = stack()
    keys = KeyedDraws.of(5, "site", [str(t) for t in given.places])
    xs = [given.dense(t).numpy() for t in given.places]

    def uniforms(t: int, purpose: str, x: np.ndarray) -> np.ndarray:
        return keys.uniform(t, purpose, torch.empty(x.shape)).numpy()

    wanted = torch.from_numpy(naive.METHODS[name](xs, WEIGHTS, uniforms, **parameters))
    settings = find(name).params(**parameters).model_dump()
    site = Site(
        given,
        settings,
        lambda t, purpose, row, like: keys.at_row(row).uniform(t, purpose, like),
        tile,
        sum(WEIGHTS) if settings.get("normalize") else None,
    )
    made = elementwise(name, site)
    assert made is not None
    for start, stop in site.tiles():
        values, noise, undecided = made.rows(start, stop)
        torch.testing.assert_close(values, wanted[start:stop], rtol=1e-9, atol=1e-12)
        assert float(noise.min()) >= 0
        assert undecided <= 12


def test_a_method_that_is_not_known_here_is_left_to_others() -> None:
    assert elementwise("drm", Site(stack(), {}, lambda t, purpose, row, like: like, 8)) is None
    assert "drm" not in METHODS


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_half_a_step_is_the_most_that_rounding_changes(dtype: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, generator=draw, dtype=torch.float64) * torch.logspace(-9, 3, 20_000, dtype=torch.float64)
    error = (x.to(getattr(torch, dtype)).double() - x).abs()
    step = half_step(x, dtype)
    assert bool((error <= step).all())
    assert float((error / step).max()) > 0.99
    normal = x.abs() > 1e-4
    assert bool((error <= unit(dtype) * x.abs())[normal].all())
    assert float(half_step(torch.zeros(1, dtype=torch.float64), dtype)) <= 2.0**-25

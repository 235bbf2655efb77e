"""The compiled loops against float64 arithmetic, one entry at a time; skipped where the package was built without them."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from robustmerge_kit import native
from robustmerge_kit.select import ordered_pattern

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

DTYPES = sorted(native.dtypes(), key=str)
HALVES = [torch.bfloat16, torch.float16]


def sample(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, ties: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** torch.randint(-4, 2, shape, generator=generator)
    return (x.round() if ties else x).to(dtype)


def naive_prune(x: torch.Tensor, k: int) -> torch.Tensor:
    x = x.double()
    bound = sorted(x.abs().flatten().tolist())[k - 1] if k else 0.0
    return torch.where(x.abs() >= bound, x, 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 300), (16, 1025), (700, 16), (301, 3), (2, 513), (5, 256), (4, 257)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.8, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_prune_keeps_adds_scales_and_sums(dtype: torch.dtype, shape: tuple[int, int], share: float, ties: bool) -> None:
    x = sample(shape, dtype, ties=ties)
    k = int(x.numel() * share)
    kept = naive_prune(x, k)
    scale = sample((shape[1],), torch.float32, seed=1)
    wide = sample((shape[0], shape[1] + 5), torch.float32, seed=2)
    for factor in (None, scale):
        sums = np.full((2, 1, shape[0]), 3.0)
        held = wide.clone()
        native.prune([x], [k], [held[:, 2:-3]], None if factor is None else factor.numpy()[None], sums)
        expected = wide[:, 2:-3].double() + kept * (1 if factor is None else factor.double())
        torch.testing.assert_close(held[:, 2:-3].double(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(held[:, :2], wide[:, :2])
        assert torch.equal(held[:, -3:], wide[:, -3:])
        full, rest = torch.from_numpy(sums[:, 0]) - 3
        torch.testing.assert_close(full, x.double().abs().sum(1), rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(rest, kept.abs().sum(1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_threshold_is_exact_at_every_rank(dtype: torch.dtype) -> None:
    """Among them values that differ in the last bit only, subnormal ones, zeros and the largest there is."""
    step = torch.finfo(dtype).eps
    x = torch.tensor([0, -0.0, 1, -1, 1 + step, -1 - step, 1 + 2 * step, torch.finfo(dtype).max, -3e-7, 6e-8, 0.5, 1e-3, 1e-3])
    x = x.to(dtype).view(1, -1)
    for k in range(x.numel() + 1):
        out = torch.zeros(x.shape)
        native.prune([x], [k], [out])
        assert torch.equal(out.double(), naive_prune(x, k)), k


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scan_finds_single_values(dtype: torch.dtype) -> None:
    for n in (1, 15, 512, 513, 2000):
        x = torch.zeros(n, dtype=dtype)
        x[n // 2] = -0.0
        assert native.scan([x]) == [(True, True)]
        for place in (0, n // 2, n - 1):
            for value in (math.nan, -math.inf, torch.finfo(dtype).max):
                x = torch.zeros(n, dtype=dtype)
                x[place] = value
                assert native.scan([x]) == [(math.isfinite(value), False)]
            x[place] = torch.finfo(dtype).smallest_normal
            assert native.scan([x]) == [(True, False)]
    assert native.scan([torch.zeros(0, dtype=dtype)]) == [(True, True)]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000])
def test_digits_are_counted_as_torch_counts_them(signed: bool, n: int) -> None:
    x = torch.cat([sample((n,), torch.float32), torch.tensor([0.0, -0.0, 1e-42, -3.4e38, 1.5, 1.5])])
    pattern = ordered_pattern(x if signed else x.abs(), signed)
    counts = torch.ones(1 << 16, dtype=torch.int64)
    native.count(x, signed, 0, 0, counts)
    upper = pattern >> 16
    assert torch.equal(counts - 1, torch.bincount(upper + (1 << 15), minlength=1 << 16))
    for prefix in upper.unique().tolist()[:40]:
        counts = torch.ones(1 << 16, dtype=torch.int64)
        native.count(x, signed, 1, prefix, counts)
        assert torch.equal(counts - 1, torch.bincount(pattern[upper == prefix] & 0xFFFF, minlength=1 << 16))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 9), (8, 5, 103), (2, 64, 64)])
def test_trim_keeps_what_reaches_the_bound_of_its_lane(shape: tuple[int, int, int]) -> None:
    x = sample(shape, torch.float32)
    bounds = x.abs().flatten(1).median(-1).values
    expected = torch.where(x.abs() >= bounds[:, None, None], x, 0.0)
    assert torch.equal(native.trim(x, bounds), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 9), (8, 5, 103), (5, 64, 64)])
@pytest.mark.parametrize("normalize", [False, True])
def test_elect_adds_up_what_agrees(shape: tuple[int, int, int], normalize: bool) -> None:
    """Among it entries that cancel to zero, which elect +, and entries that are zero in every lane."""
    x = sample(shape, torch.float32)
    x[:, 0, 0] = 0.0
    x[:, -1] = 0.0
    x[0, -1], x[-1, -1] = 2.0, -2.0 if shape[0] > 1 else 2.0
    sizes = torch.arange(1.0, shape[0] + 1)
    sign = torch.where(x.double().sum(0) >= 0, 1.0, -1.0)
    agrees = x.double() * sign > 0
    expected = torch.where(agrees, x.double(), 0.0).sum(0)
    if normalize:
        mass = (agrees * sizes[:, None, None].double()).sum(0)
        expected = expected / torch.where(mass > 0, mass, 1.0)
    got = native.elect(x, sizes if normalize else None)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_equals_torch_bit_for_bit(dtype: torch.dtype) -> None:
    """Every number of the dtype, what lies halfway between neighbours, next to halfway, and any other bits."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    finite = every[every.isfinite()].sort().values
    halfway = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (100_003,), generator=generator).to(torch.int32).view(torch.float32)
    zero = torch.zeros(())
    largest = torch.tensor([65519.99, 65520.0, 3.4e38, -3.4e38])
    x = torch.cat([every, halfway, torch.nextafter(halfway, zero), torch.nextafter(halfway, 2 * halfway), anything, largest])
    out = torch.empty(x.numel(), dtype=dtype)
    native.round_into(x, out)
    expected = x.to(dtype)
    numbers = ~expected.isnan()
    assert torch.equal(out.isnan(), ~numbers)
    assert torch.equal(out[numbers].view(torch.int16), expected[numbers].view(torch.int16))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 513), (16, 1200), (40, 7)])
def test_losses_of_rows(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = sample(shape, torch.float32)
    rounded = x.to(dtype)
    whole, lost = x.double(), x.double() - rounded.double()
    expected = torch.stack([(whole * whole).sum(1), (lost * lost).sum(1), (whole * lost).sum(1)], 1)
    got = torch.from_numpy(native.losses(x, rounded))
    size = (whole.norm(dim=1) * lost.norm(dim=1))[:, None]
    torch.testing.assert_close(got[:, :2], expected[:, :2], rtol=1e-5, atol=1e-12)
    assert bool(((got[:, 2:] - expected[:, 2:]).abs() <= 1e-5 * size + 1e-12).all())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_measures_what_it_changes(dtype: torch.dtype) -> None:
    for n in (1, 9, 512, 5003):
        x = sample((n,), torch.float32, seed=n)
        out = torch.empty(n, dtype=dtype)
        error2 = native.round_into(x, out)
        assert error2 == pytest.approx(float((out.double() - x.double()).square().sum()), rel=1e-5, abs=1e-30)
    x[17] = 3.4e38
    assert not math.isfinite(native.round_into(x, torch.empty(n, dtype=dtype)))


def test_tensors_that_do_not_fit_are_declined() -> None:
    x = torch.zeros(4, 6)
    assert native.fits(x)
    assert not native.fits(x.T)
    assert not native.fits(x.double())
    assert not native.fits(x.to(torch.int32))
    assert not native.fits(x.to("meta"))


def test_the_environment_can_forbid_them() -> None:
    code = "from robustmerge_kit import native; print(native.available())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "RMKIT_NATIVE": "0"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"

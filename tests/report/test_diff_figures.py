"""Figures of two updates whose relation is known in closed form, and of random ones against dense float64."""

import math

import pytest
import torch
from torch import Tensor

from robustmerge_kit.report.difference import Figures
from robustmerge_kit.report.difference.dense import compare_values
from robustmerge_kit.report.difference.updates import compare_updates

DRAW = torch.Generator().manual_seed(5)


def gaussian(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def rotation(r: int) -> Tensor:
    return torch.linalg.qr(gaussian(r, r))[0]


A, B = gaussian(4, 30), gaussian(20, 4)
Q = rotation(4)
MIX = gaussian(4, 4) + 4 * torch.eye(4, dtype=torch.float64)
BASIS_OUT, BASIS_IN = torch.linalg.qr(gaussian(20, 8))[0], torch.linalg.qr(gaussian(30, 8))[0].T

CASES = {
    # name: first, second, relative error, cosine, norm ratio, ranks of A, B, B - A
    "identical": ((A, B, 2.0), (A, B, 2.0), 0.0, 1.0, 1.0, (4, 4, 0)),
    "scaled by 3": ((A, B, 1.0), (A, B, 3.0), 2.0, 1.0, 3.0, (4, 4, 4)),
    "scale moved into B": ((A, B, 2.0), (A, 2 * B, 1.0), 0.0, 1.0, 1.0, (4, 4, 0)),
    "opposite": ((A, B, 1.0), (A, -B, 1.0), 2.0, -1.0, 1.0, (4, 4, 4)),
    "opposite by scale": ((A, B, 1.0), (A, B, -1.0), 2.0, -1.0, 1.0, (4, 4, 4)),
    "rotated split": ((A, B, 1.0), (Q.T @ A, B @ Q, 1.0), 0.0, 1.0, 1.0, (4, 4, 0)),
    "mixed split": ((A, B, 1.0), (torch.linalg.inv(MIX) @ A, B @ MIX, 1.0), 0.0, 1.0, 1.0, (4, 4, 0)),
    "padded with zeros": (
        (A, B, 1.0),
        (torch.cat([A, gaussian(3, 30)]), torch.cat([B, torch.zeros(20, 3, dtype=torch.float64)], 1), 1.0),
        *(0.0, 1.0, 1.0, (4, 4, 0)),
    ),
    "orthogonal": (
        (BASIS_IN[:4], BASIS_OUT[:, :4], 1.0),
        (BASIS_IN[4:7], BASIS_OUT[:, 4:7], 2.0),
        *(2.0, 0.0, math.sqrt(3.0), (4, 3, 7)),
    ),
    "orthogonal in their rows alone": (
        (BASIS_IN[:4], BASIS_OUT[:, :4], 1.0),
        (BASIS_IN[4:], BASIS_OUT[:, :4], 1.0),
        *(math.sqrt(2.0), 0.0, 1.0, (4, 4, 4)),
    ),
    "one direction more": (
        (BASIS_IN[:4], BASIS_OUT[:, :4], 1.0),
        (BASIS_IN[:5], BASIS_OUT[:, :5], 1.0),
        *(0.5, 2 / math.sqrt(5.0), math.sqrt(5.0) / 2, (4, 5, 1)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_closed_forms(name: str) -> None:
    first, second, error, cosine, ratio, ranks = CASES[name]
    figures, found = compare_updates(first, second)
    assert figures.relative_error == pytest.approx(error, abs=1e-14)
    assert figures.cosine == pytest.approx(cosine, abs=1e-14)
    assert figures.norm_ratio == pytest.approx(ratio, rel=1e-14)
    assert (found.a, found.b, found.difference) == ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_split_that_is_rounded_differs_by_its_rounding(dtype: torch.dtype) -> None:
    figures, ranks = compare_updates((A.to(dtype), B.to(dtype), 1.0), ((Q.T @ A).to(dtype), (B @ Q).to(dtype), 1.0))
    eps = torch.finfo(dtype).eps
    assert 0.02 * eps < figures.relative_error < 2 * eps
    assert figures.cosine == pytest.approx(1.0, abs=2 * eps**2 + 1e-15)
    assert (ranks.difference == 0) == (dtype == torch.float32)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (6, 5), (1, 9)])
@pytest.mark.parametrize("r", [(4, 4), (1, 7), (16, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_dense_float64(shape: tuple[int, int], r: tuple[int, int], dtype: torch.dtype) -> None:
    d_out, d_in = shape
    sides = [(gaussian(k, d_in).to(dtype), gaussian(d_out, k).to(dtype), scale) for k, scale in zip(r, (0.5, 3.0), strict=True)]
    dense = [scale * b.double() @ a.double() for a, b, scale in sides]
    figures, ranks = compare_updates(*sides)
    difference = dense[1] - dense[0]
    assert figures.a2 == pytest.approx(float(dense[0].square().sum()), rel=1e-12)
    assert figures.b2 == pytest.approx(float(dense[1].square().sum()), rel=1e-12)
    assert figures.difference2 == pytest.approx(float(difference.square().sum()), rel=1e-12)
    assert figures.inner == pytest.approx(float((dense[0] * dense[1]).sum()), rel=1e-10)
    expected = [int(torch.linalg.matrix_rank(x)) for x in (*dense, difference)]
    assert [ranks.a, ranks.b, ranks.difference] == expected


def test_experts_are_compared_together_and_the_largest_rank_counts() -> None:
    a, b, scale = gaussian(3, 2, 30), gaussian(3, 20, 2), 0.5
    other = b.clone()
    other[1] *= 2
    other[2, :, 0] *= -1
    figures, ranks = compare_updates((a, b, scale), (a, other, scale))
    dense, changed = scale * b @ a, scale * other @ a
    assert figures.relative_error == pytest.approx(float((changed - dense).norm() / dense.norm()), rel=1e-12)
    assert figures.cosine == pytest.approx(float((changed * dense).sum() / dense.norm() / changed.norm()), rel=1e-12)
    assert (ranks.a, ranks.b, ranks.difference) == (2, 2, 2)


def test_a_small_difference_keeps_its_digits() -> None:
    """Inner products would leave 1e-8 of it: ||a||^2 + ||b||^2 - 2 <a, b> cancels."""
    nudge = 1e-10 * gaussian(20, 4)
    figures, _ = compare_updates((A, B, 1.0), (A, B + nudge, 1.0))
    assert math.sqrt(figures.difference2) == pytest.approx(float((nudge @ A).norm()), rel=1e-4)


def test_an_update_that_is_not_there_is_zero() -> None:
    norm2 = float((B @ A).square().sum())
    figures, ranks = compare_updates((A, B, 2.0), None)
    assert (figures.a2, figures.b2, figures.difference2) == pytest.approx((4 * norm2, 0.0, 4 * norm2))
    assert (figures.relative_error, figures.cosine, figures.norm_ratio) == (1.0, None, 0.0)
    assert (ranks.a, ranks.b, ranks.difference) == (4, None, 4)
    figures, ranks = compare_updates(None, (A, B, 1.0))
    assert (figures.relative_error, figures.cosine, figures.norm_ratio) == (math.inf, None, None)
    assert (ranks.a, ranks.b, ranks.difference) == (None, 4, 4)


def test_two_zero_updates_are_equal() -> None:
    figures, ranks = compare_updates((A, 0 * B, 1.0), (A, B, 0.0))
    assert (figures.relative_error, figures.cosine, figures.norm_ratio) == (0.0, None, None)
    assert (ranks.a, ranks.b, ranks.difference) == (0, 0, 0)


def test_figures_add_up() -> None:
    x, y = gaussian(50), gaussian(50)
    whole, _ = compare_values(x, y)
    parts = Figures()
    for at in range(0, 50, 7):
        parts += compare_values(x[at : at + 7], y[at : at + 7])[0]
    for name in ("a2", "b2", "difference2", "inner"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    assert whole.cosine == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)))


nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    ("x", "y", "not_finite", "difference2"),
    [
        ([1, nan], [1, nan], 0, 0),
        ([1, inf], [2, inf], 0, 1),
        ([1, inf], [1, -inf], 1, 0),
        ([nan, inf, 0], [0, 5, 3], 2, 9),
    ],
)
def test_values_that_are_not_finite(x: list[float], y: list[float], not_finite: int, difference2: float) -> None:
    figures, bad = compare_values(torch.tensor(x), torch.tensor(y))
    assert (bad, figures.difference2) == (not_finite, difference2)


FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@pytest.mark.parametrize("name", [*FLOATS, "int64", "int8", "uint8", "bool", "complex64"])
def test_every_dtype_can_be_compared_with_every_other(name: str) -> None:
    dtype: torch.dtype = getattr(torch, name)
    x = torch.tensor([0.0, 1.0, 1.0]).to(dtype)
    for other in (torch.float32, torch.bfloat16, torch.int64):
        if not dtype.is_complex:
            figures, _ = compare_values(x, torch.tensor([0.0, 1.0, 0.0]).to(other))
            assert (figures.a2, figures.b2, figures.difference2, figures.inner) == (2, 1, 1, 1)
    figures, _ = compare_values(x, x)
    assert (figures.a2, figures.difference2) == (2, 0)

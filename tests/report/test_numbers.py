"""Figures of one site against values known in advance and against a dense decomposition in float64."""

import math

import pytest
import torch
from torch import Tensor

from robustmerge_kit.report.numbers import effective_rank, measure, not_finite


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=draw, dtype=torch.float64))[0]


def factors(values: list[float], d_out: int = 7, d_in: int = 6, gauge: float = 1.0) -> tuple[Tensor, Tensor]:
    """A and B whose product has these singular values; B is `gauge` squared times as long as A."""
    root = torch.tensor(values, dtype=torch.float64).sqrt()
    k = len(values)
    return (orthonormal(d_in, k, 1) * root / gauge).mT.contiguous(), orthonormal(d_out, k, 2) * root * gauge


@pytest.mark.parametrize(
    ("values", "scale", "norm", "rank"),
    [
        ([1.0], 1.0, 1.0, 1.0),
        ([3.0], -2.0, 6.0, 1.0),
        ([2.0, 2.0], 1.0, math.sqrt(8), 2.0),
        ([5.0, 5.0, 5.0], 2.0, math.sqrt(300), 3.0),
        ([2.0, 1.0, 1.0], 1.0, math.sqrt(6), 2**1.5),
        ([4.0, 3.0, 1.0], 0.5, math.sqrt(26) / 2, 4 * 3**-0.375),
    ],
)
def test_norm_spectrum_and_effective_rank_of_known_matrices(
    values: list[float], scale: float, norm: float, rank: float
) -> None:
    found = measure(*factors(values), scale)
    assert found is not None
    assert found.singular_values == pytest.approx([abs(scale) * v for v in values], rel=1e-9)
    assert found.norm == pytest.approx(norm, rel=1e-9)
    assert found.effective_rank == pytest.approx(rank, rel=1e-9)
    assert found.gauge == pytest.approx(1.0)
    assert (found.zero_rows_a, found.zero_columns_b) == (0, 0)


@pytest.mark.parametrize("gauge", [1e-6, 0.1, 1.0, 7.0, 1e6])
def test_the_split_between_the_factors_changes_the_gauge_and_nothing_else(gauge: float) -> None:
    values = [4.0, 2.0, 1e-3]
    found = measure(*factors(values, gauge=gauge), 1.0)
    assert found is not None
    assert found.gauge == pytest.approx(gauge**2, rel=1e-9)
    assert found.singular_values == pytest.approx(values, rel=1e-6)


def test_directions_scaled_one_by_one_keep_their_singular_values() -> None:
    a, b = factors([3.0, 2.0, 1.0])
    lengths = torch.tensor([1e8, 1.0, 1e-8], dtype=torch.float64)
    found = measure(lengths[:, None] * a, b / lengths, 1.0)
    assert found is not None
    assert found.singular_values == pytest.approx([3.0, 2.0, 1.0], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("d_out", "d_in", "r"), [(9, 8, 4), (3, 20, 6), (20, 3, 6), (5, 5, 5), (4, 4, 9), (6, 6, 1)])
def test_agrees_with_the_dense_decomposition(d_out: int, d_in: int, r: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(d_out * r)
    a, b = torch.randn(r, d_in, generator=draw).to(dtype), torch.randn(d_out, r, generator=draw).to(dtype)
    found = measure(a, b, 1.5)
    assert found is not None
    s = torch.linalg.svdvals(1.5 * b.double() @ a.double())
    s = s[s > 1e-5 * s[0]]
    assert found.singular_values == pytest.approx(s.tolist(), rel=1e-6)
    assert found.norm == pytest.approx(float(s.norm()), rel=1e-9)
    p = s / s.sum()
    assert found.effective_rank == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)


def test_a_repeated_direction_is_counted_once() -> None:
    a, b = factors([2.0, 1.0])
    found = measure(torch.cat([a, a]), torch.cat([b, b], 1), 0.5)
    assert found is not None
    assert found.singular_values == pytest.approx([2.0, 1.0], rel=1e-9)


def test_zero_rows_and_columns_are_counted_apart() -> None:
    a, b = factors([4.0, 3.0, 2.0, 1.0])
    a[0], b[:, 1], b[:, 2] = 0, 0, 0
    found = measure(a, b, 1.0)
    assert found is not None
    assert (found.zero_rows_a, found.zero_columns_b) == (1, 2)
    assert found.singular_values == pytest.approx([1.0])


@pytest.mark.parametrize(("size", "dead"), [(1.1e-3, 0), (0.9e-3, 1), (0.0, 1)])
def test_a_term_is_dead_below_a_thousandth_of_the_largest(size: float, dead: int) -> None:
    a, b = torch.eye(3, 8, dtype=torch.float64), torch.eye(9, 3, dtype=torch.float64)
    b[:, 1] *= 4 * size
    b[:, 0] *= 4
    found = measure(a, b, 7.0)
    assert found is not None
    assert found.dead == dead


def test_a_zero_delta_has_no_spectrum() -> None:
    a, b = factors([4.0, 3.0])
    for found in (measure(a, 0 * b, 1.0), measure(0 * a, b, 1.0), measure(a, b, 0.0)):
        assert found is not None
        assert (found.norm, found.effective_rank) == (0.0, 0.0)
        assert found.singular_values == ()
    fresh = measure(a, 0 * b, 1.0)
    assert fresh is not None
    assert fresh.gauge is None
    assert (fresh.zero_columns_b, fresh.dead) == (2, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e160, 1e300])
def test_what_is_not_finite_has_no_figures(bad: float) -> None:
    a, b = factors([4.0, 3.0])
    b[1, 1] = bad
    assert measure(a, b, 1.0) is None


def test_inputs_are_left_alone() -> None:
    a, b = factors([4.0, 3.0])
    kept = a.clone(), b.clone()
    measure(a, b, 2.0)
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_nan_and_infinity_are_counted_apart() -> None:
    found = not_finite(torch.tensor([math.nan, 1, math.inf, -math.inf]))
    assert (found.nan, found.inf) == (1, 2)
    assert not not_finite(torch.tensor([1.0, 2.0]))
    assert not not_finite(torch.tensor([1, 2]))
    assert not not_finite(torch.zeros(0))


def test_the_effective_rank_lies_between_one_and_the_rank() -> None:
    for k in range(1, 9):
        s = torch.arange(1, k + 1, dtype=torch.float64)
        assert 1 - 1e-12 <= effective_rank(s) <= k + 1e-12

"""The measured rounding of factors against the dense deltas in float64."""

from __future__ import annotations

import pytest
import torch

from robustmerge_kit.factors import LowRank
from robustmerge_kit.pipeline import LARGE, measure_rounding


def factors(d_out: int, d_in: int, rank: int, *, orthogonal: bool) -> LowRank:
    draw = torch.Generator().manual_seed(rank)
    b, a = torch.randn(d_out, rank, generator=draw), torch.randn(rank, d_in, generator=draw)
    if orthogonal:
        scale = torch.logspace(0, -2, rank)
        b, a = torch.linalg.qr(b)[0] * scale, torch.linalg.qr(a.T)[0].T * scale[:, None]
    return LowRank(b, a)


def dense(exact: LowRank, rounded: LowRank) -> tuple[float, float]:
    whole, stored = exact.b.double() @ exact.a.double(), rounded.b.double() @ rounded.a.double()
    return float(whole.norm()), float((whole - stored).norm())


@pytest.mark.parametrize(
    ("d_out", "d_in", "rank", "orthogonal", "tolerance"),
    [
        (40, 30, 5, False, 1e-4),
        (40, 30, 5, True, 1e-4),
        (LARGE, LARGE + 500, 16, True, 2e-3),
        (LARGE + 300, LARGE, 64, True, 2e-3),
        (LARGE, LARGE, 16, False, 1e-4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_that_of_the_dense_deltas(
    d_out: int, d_in: int, rank: int, orthogonal: bool, tolerance: float, dtype: torch.dtype
) -> None:
    exact = factors(d_out, d_in, rank, orthogonal=orthogonal)
    rounded = LowRank(exact.b.to(dtype), exact.a.to(dtype))
    norm, error = dense(exact, rounded)
    found = measure_rounding(exact, rounded, orthogonal)
    assert found.norm2**0.5 == pytest.approx(norm, rel=1e-5)
    assert found.error2**0.5 == pytest.approx(error, rel=tolerance)


def test_errors_along_the_terms_add_up() -> None:
    """Every entry rounds the same way, so that the errors of both factors are not independent at all."""
    b = torch.full((LARGE, 1), 1.001)
    exact = LowRank(b, b.T.contiguous())
    rounded = LowRank(exact.b.bfloat16(), exact.a.bfloat16())
    assert measure_rounding(exact, rounded, orthogonal=True).error2 ** 0.5 == pytest.approx(dense(exact, rounded)[1], rel=1e-3)


def test_what_is_not_rounded_has_no_error() -> None:
    exact = factors(LARGE, LARGE, 4, orthogonal=True)
    assert measure_rounding(exact, exact, orthogonal=True).error2 == 0.0

"""Products with a basis, in its own dtype where its vectors are well conditioned, in float64 where they are not."""

import pytest
import torch

from robustmerge_kit.orthonormal import MILD, Basis, orthonormal


def vectors(d: int, k: int, condition: float) -> torch.Tensor:
    """Columns of norm 1 or so whose singular values fall from 1 to 1 / condition."""
    draw = torch.Generator().manual_seed(d + k)
    u, _, v = torch.linalg.svd(torch.randn(d, k, generator=draw, dtype=torch.float64), full_matrices=False)
    return ((u * torch.logspace(0, -torch.log10(torch.tensor(condition)), k, dtype=torch.float64)) @ v).float()


def relative_error(x: torch.Tensor, basis: Basis, cols: int) -> float:
    """Relative, of Q y against Q in float64 by Householder."""
    exact = torch.linalg.qr(x.double())[0]
    # Both are bases of one space; they differ in signs only.
    signs = (exact.T @ basis.double()).diagonal().sign()
    y = torch.randn(x.shape[1], cols, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = exact * signs @ y
    return float(((basis @ y).double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("condition", "dtype"), [(1.5, torch.float32), (3.0, torch.float32), (300.0, torch.float64)])
@pytest.mark.parametrize("cols", [1, 5, 32])
def test_products_are_as_exact_as_their_dtype(condition: float, dtype: torch.dtype, cols: int) -> None:
    x = vectors(500, 32, condition)
    basis, r = orthonormal(x, exact=False, dtype=torch.float32)
    assert basis.vectors.dtype == dtype
    assert relative_error(x, basis, cols) < 3e-7
    assert float((basis.double() @ r - x.double()).norm() / x.double().norm()) < 3e-7


def test_mild_is_judged_by_the_condition_of_normalised_columns() -> None:
    """Columns of very different lengths are no harm; nearly parallel ones are."""
    lengths = torch.logspace(-6, 3, 16)
    x = vectors(400, 16, 1.2)
    assert orthonormal(x * lengths, exact=False, dtype=torch.float32)[0].vectors.dtype == torch.float32
    x[:, 1] = x[:, 0] + 1e-2 * x[:, 1]
    basis, _ = orthonormal(x, exact=False, dtype=torch.float32)
    assert MILD < 100
    assert basis.vectors.dtype == torch.float64
    assert relative_error(x, basis, 4) < 3e-7


def test_float64_stays_float64() -> None:
    basis, _ = orthonormal(vectors(100, 8, 1.5).double(), exact=False)
    assert basis.vectors.dtype == torch.float64
    assert relative_error(vectors(100, 8, 1.5), basis, 3) < 1e-12

"""The part of a weight with which PiSSA and OLoRA begin, against decompositions of the whole weight in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustmerge_kit import leading
from robustmerge_kit.factors import LowRank
from robustmerge_kit.initial import leading_columns, leading_triplets
from robustmerge_kit.leading import right_vectors


def decaying(rows: int, cols: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Singular values that fall as those of trained weights do: a few large ones, then noise."""
    draw = torch.Generator().manual_seed(rows + cols)
    spread = torch.logspace(0, -1, 24, dtype=torch.float64)
    shared = torch.randn(rows, 24, generator=draw, dtype=torch.float64) * spread
    noise = torch.randn(rows, cols, generator=draw, dtype=torch.float64)
    return (shared @ torch.randn(24, cols, generator=draw, dtype=torch.float64) + 0.05 * noise).to(dtype)


def best(weight: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (64, 64), (1300, 1100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_triplets(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = decaying(*shape, dtype)
    found = leading_triplets(weight, 4, 2.5)
    expected = best(weight, 4)
    assert float((2.5 * found.b @ found.a - expected).norm()) < 1e-9 * float(expected.norm())
    torch.testing.assert_close(found.b.mT @ found.b, found.a @ found.a.mT, rtol=1e-9, atol=1e-9)
    assert bool((found.b.gather(0, found.b.abs().argmax(0, keepdim=True)) > 0).all())


def test_large_weights_are_searched_and_the_search_knows_when_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "EXACT_SIDE", 100)
    weight = decaying(500, 400)
    expected = torch.linalg.svd(weight, full_matrices=False).Vh[:3].mT
    monkeypatch.setattr(torch.linalg, "eigh", small_only(200))
    found = right_vectors(weight, 3)
    assert float((found @ found.mT - expected @ expected.mT).norm()) < 1e-8
    torch.testing.assert_close((weight @ found).norm(dim=0), torch.linalg.svdvals(weight)[:3])
    monkeypatch.undo()
    monkeypatch.setattr(leading, "EXACT_SIDE", 100)
    flat = torch.randn(400, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert leading._search(flat, 3) is None  # pyright: ignore[reportPrivateUsage]
    found, expected = right_vectors(flat, 3), torch.linalg.svd(flat).Vh[:3].mT
    assert float((found @ found.mT - expected @ expected.mT).norm()) < 1e-8


def small_only(side: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The eigensolver, guarded."""
    solve = torch.linalg.eigh

    def guarded(x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.shape[0] <= side
        return solve(x)

    return guarded


@pytest.mark.parametrize("shape", [(9, 7), (7, 9)], ids=str)
def test_columns(shape: tuple[int, int]) -> None:
    weight = decaying(*shape)
    found = leading_columns(weight, 3)
    q, r = torch.linalg.qr(weight)
    torch.testing.assert_close(found.b @ found.a, q[:, :3] @ r[:3])
    torch.testing.assert_close(found.b.mT @ found.b, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda w, r: leading_triplets(w, r, 1.0), leading_columns], ids=["triplets", "columns"])
def test_ranks_beyond_the_weight_s(make: Callable[[Tensor, int], LowRank]) -> None:
    weight = decaying(5, 4)
    found = make(weight, 6)
    assert (found.b.shape, found.a.shape) == ((5, 6), (6, 4))
    torch.testing.assert_close(found.b @ found.a, weight)


def test_a_weight_of_zeros() -> None:
    found = leading_triplets(torch.zeros(6, 5), 2, 1.0)
    assert not (found.b @ found.a).any()

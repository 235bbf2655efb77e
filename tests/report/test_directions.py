"""The number of directions between two matrices: exact where it is known, and blind to the rounding of storage."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustmerge_kit.report.difference.directions import MOST, count_directions
from robustmerge_kit.shards import TensorRef, open_tensors


def stored(place: Path, name: str, value: Tensor) -> TensorRef:
    save_file({"w": value.contiguous()}, place / f"{name}.safetensors")
    return open_tensors(place / f"{name}.safetensors").tensors["w"]


def count(place: Path, a: Tensor, b: Tensor, elements: int = 5000) -> int | None:
    return count_directions(stored(place, "a", a), stored(place, "b", b), elements)


def update(shape: tuple[int, int], rank: int, size: float) -> Tensor:
    """Of `rank` singular values between size and 3 * size."""
    draw = torch.Generator().manual_seed(rank)
    u, v = (torch.linalg.qr(torch.randn(d, rank, generator=draw))[0] for d in shape)
    return u @ torch.diag(torch.linspace(1, 3, rank) * size) @ v.T


BASE = 0.02 * torch.randn(300, 400, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rank", [1, 8, 40])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float64, 0.1), (torch.float32, 1e-4), (torch.bfloat16, 0.01), (torch.float16, 0.002)]
)
def test_a_low_rank_update_is_counted_above_its_rounding(tmp_path: Path, dtype: torch.dtype, size: float, rank: int) -> None:
    base = BASE.to(dtype)
    assert count(tmp_path, base, (base.double() + update((300, 400), rank, size).double()).to(dtype)) == rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_alone_has_no_directions(tmp_path: Path, dtype: torch.dtype) -> None:
    assert count(tmp_path, BASE, BASE.to(dtype)) == 0
    assert count(tmp_path, BASE.to(dtype), BASE.mul(1 + 1e-4).to(dtype)) == 0


def test_more_than_can_be_counted(tmp_path: Path) -> None:
    assert count(tmp_path, BASE, BASE + 0.01 * torch.randn(300, 400)) == MOST


@pytest.mark.parametrize("elements", [1, 1000, 1 << 20])
def test_the_size_of_tiles_does_not_matter(tmp_path: Path, elements: int) -> None:
    assert count(tmp_path, BASE, BASE + update((300, 400), 5, 0.1), elements) == 5


def test_small_matrices(tmp_path: Path) -> None:
    assert count(tmp_path, torch.zeros(3, 2), torch.eye(3, 2)) == 2
    assert count(tmp_path, torch.zeros(1, 7), torch.ones(1, 7)) == 1


@pytest.mark.parametrize("value", [torch.zeros(4), torch.zeros(2, 2, 2), torch.zeros(2, 2, dtype=torch.int64)])
def test_what_is_no_matrix_of_numbers_has_none(tmp_path: Path, value: Tensor) -> None:
    assert count(tmp_path, value, value + 1) is None

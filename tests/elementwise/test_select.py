import pytest
import torch

from robustmerge_kit.select import kth_magnitude

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (2,), (97,), (3, 50), (2, 3, 41)])
def test_kth_magnitude_is_the_kth_of_the_sorted_magnitudes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = x.clone()
    ranked = x.abs().sort(dim=-1).values
    for k in range(1, shape[-1] + 1):
        kth = kth_magnitude(x, k)
        assert kth.dtype == dtype
        assert torch.equal(kth, ranked[..., k - 1])
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kth_magnitude_with_ties_zeros_and_subnormals(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 4
    x = torch.tensor([0.0, -0.0, tiny, -tiny, 1.0, -1.0, 1.0, 3.0], dtype=dtype)
    assert [float(kth_magnitude(x, k)) for k in range(1, 9)] == [0.0, 0.0, tiny, tiny, 1.0, 1.0, 1.0, 3.0]


def test_kth_magnitude_reads_a_strided_view() -> None:
    x = torch.arange(12, dtype=torch.float32).reshape(3, 4).T
    assert torch.equal(kth_magnitude(x, 2), torch.tensor([4.0, 5.0, 6.0, 7.0]))


@pytest.mark.parametrize("k", [0, -1, 5])
def test_kth_magnitude_refuses_a_k_outside_the_axis(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} is outside 1..4"):
        kth_magnitude(torch.zeros(4), k)

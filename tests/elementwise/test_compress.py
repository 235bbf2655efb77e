import pytest
import torch

from robustmerge_kit import compress as module
from robustmerge_kit.compress import compress, compress_to_energy
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.spaces import Dense

DRAWS = KeyedDraws.of(0, "site", ("a", "b"))


def dense_of(x: torch.Tensor, block_rows: int = 16) -> Dense:
    return Dense(x.shape, block_rows, lambda start, stop: x[start:stop])


def decaying(d_out: int, d_in: int, decay: float = 0.7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(d_out)
    k = min(d_out, d_in)
    u = torch.linalg.qr(torch.randn(d_out, k, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(d_in, k, generator=generator, dtype=torch.float64))[0]
    return ((u * decay ** torch.arange(k)) @ v.mT).float()


@pytest.mark.parametrize("route", ["exact", "range finder", "range finder, streamed"])
@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (50, 50)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_compress_is_the_best_approximation(shape: tuple[int, int], rank: int, route: str, monkeypatch) -> None:
    monkeypatch.setattr(module, "EXACT_SIDE", 2048 if route == "exact" else 1)
    monkeypatch.setattr(module, "HOLD_ENTRIES", 1 if "streamed" in route else 1 << 26)
    x = decaying(*shape)
    found = compress(dense_of(x), rank, DRAWS)
    low = found.spectral.cut(rank)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert float((low.b.double() @ low.a.double() - best).norm() / best.norm()) < 1e-5
    assert torch.allclose(found.spectral.s, s[:rank], rtol=1e-5)
    assert float(found.energy) == pytest.approx(float(x.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("exact_side", [2048, 1])
def test_a_zero_delta_has_no_direction(exact_side: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "EXACT_SIDE", exact_side)
    found = compress(dense_of(torch.zeros(20, 30)), 4, DRAWS)
    assert found.spectral.rank == 0
    assert float(found.energy) == 0
    assert not bool(found.spectral.cut(4).b.isnan().any())


def test_a_rank_beyond_the_sides_is_capped() -> None:
    assert compress(dense_of(decaying(6, 9)), 50, DRAWS).spectral.s.shape == (6,)


def test_compress_to_energy_doubles_until_the_share_is_kept() -> None:
    x = decaying(40, 40, decay=0.9)
    found = compress_to_energy(dense_of(x), 0.99, 2, DRAWS)
    assert float(found.spectral.s.square().sum() / found.energy) >= 0.99
    assert len(found.spectral.s) == 32


def test_rows_are_the_same_however_they_are_asked_for() -> None:
    x = decaying(50, 20)
    dense = dense_of(x, 8)
    assert torch.equal(dense.rows(3, 41), x[3:41])
    assert torch.equal(torch.cat([block for _, block in dense.blocks()]), x)
    assert torch.equal(dense.full(), x)

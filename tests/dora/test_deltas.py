"""DoRA's delta and what is made of it, against dense float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from robustmerge_kit import dora
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.factors import FactorStack, Weights

D_OUT, D_IN = 24, 17
DRAWS = KeyedDraws.of(0, "site", ["x", "y", "z"])


@dataclass(frozen=True)
class Case:
    """A site with two DoRA adapters and a plain one between them, of different ranks, scales and weights."""

    stack: FactorStack
    scales: tuple[float, ...]
    magnitudes: tuple[Tensor | None, ...]
    base: Tensor
    deltas: tuple[Tensor, ...]
    """Weighted deltas, by the definition."""

    def rows(self, start: int, stop: int) -> Tensor:
        return self.base[start:stop]

    def folded(self) -> tuple[FactorStack, dora.OnBase]:
        return dora.fold_magnitudes(self.stack, self.scales, self.magnitudes, self.rows)


def case(dtype: torch.dtype = torch.float64) -> Case:
    draw = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    ranks, weights, scales = (2, 3, 4), (0.7, -1.2, 2.0), (2.0, 0.5, 3.0)
    a, b = [randn(r, D_IN) for r in ranks], [0.2 * randn(D_OUT, r) for r in ranks]
    base = randn(D_OUT, D_IN)
    magnitudes = [base.norm(dim=1) * (1 + 0.1 * randn(D_OUT)) if t != 1 else None for t in range(3)]
    deltas: list[Tensor] = []
    for t, weight in enumerate(weights):
        wide = base.double()
        adapted = wide + scales[t] * b[t].double() @ a[t].double()
        magnitude = magnitudes[t]
        if magnitude is not None:
            adapted = magnitude.double()[:, None] * adapted / adapted.norm(dim=1, keepdim=True)
        deltas.append(weight * (adapted - wide))
    coefficients = tuple(w * s for w, s in zip(weights, scales, strict=True))
    stack = FactorStack(tuple(a), tuple(b), coefficients, Weights.of(weights))
    return Case(stack, scales, tuple(magnitudes), base, tuple(deltas))


@pytest.fixture(params=[dora.TILE, 40], ids=["one tile", "tiles of two rows"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dora, "TILE", request.param)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_delta_of_each(dtype: torch.dtype, bound: float) -> None:
    here = case(dtype)
    stack, base = here.folded()
    for t, expected in enumerate(here.deltas):
        only = torch.zeros(3, dtype=torch.float64)
        only[t] = 1
        found = dora.combine(stack, base, only).dense(base.weight).full()
        assert (found - expected).norm() / expected.norm() < bound
    assert stack.weights == here.stack.weights
    assert base.gains[1].eq(0).all()


def test_a_row_of_zeros_stays_zero() -> None:
    here = case()
    here.base[5] = -(here.scales[0] * here.stack.b[0] @ here.stack.a[0])[5]
    stack, base = here.folded()
    found = dora.combine(stack, base, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)).dense(base.weight).full()
    torch.testing.assert_close(here.base[5] + found[5] / stack.weights.each[0], torch.zeros(D_IN, dtype=torch.float64))


@pytest.mark.usefixtures("tiles")
def test_sums_and_products() -> None:
    here = case()
    stack, base = here.folded()
    c = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64)
    expected = sum((x * d for x, d in zip(c, here.deltas, strict=True)), torch.zeros(()))
    torch.testing.assert_close(dora.combine(stack, base, c).dense(base.weight).full(), expected)
    by_row = torch.randn(D_OUT, 3, dtype=torch.float64)
    torch.testing.assert_close(
        dora.combine(stack, base, by_row).dense(base.weight).full(),
        sum((by_row[:, t, None] * d for t, d in enumerate(here.deltas)), torch.zeros(())),
    )
    x = torch.stack(here.deltas)
    torch.testing.assert_close(dora.gram(stack, base), torch.einsum("ird,jrd->ij", x, x))
    torch.testing.assert_close(dora.rowwise_gram(stack, base), torch.einsum("ird,jrd->rij", x, x))
    (thing,) = dora.represent_full(stack, base).objects
    torch.testing.assert_close(torch.cat([thing.make(s, min(s + 5, D_OUT)) for s in range(0, D_OUT, 5)], -2), x)


def test_factors_are_the_best_of_their_rank() -> None:
    here = case()
    stack, base = here.folded()
    plain, kept = dora.as_factors(stack, base, DRAWS)
    assert kept[1] is None
    assert plain.a[1] is stack.a[1]
    for t in (0, 2):
        spectrum = torch.linalg.svdvals(here.deltas[t])
        rank = plain.ranks[t]
        assert here.stack.ranks[t] <= rank <= dora.widest_rank(here.stack.ranks[t], D_OUT, D_IN)
        energy = spectrum.square()
        share = energy[:rank].sum() / energy.sum()
        assert kept[t] == pytest.approx(float(share), rel=1e-10)
        assert rank == 4 * here.stack.ranks[t] or (share >= dora.SHARE and energy[: rank - 1].sum() < dora.SHARE * energy.sum())
        delta = plain.folded_b(t) @ plain.folded_a(t)
        lost = (here.deltas[t] - delta).norm() / here.deltas[t].norm()
        assert float(lost) == pytest.approx(float((1 - share) ** 0.5), rel=1e-6, abs=1e-7)
        assert plain.coefficients[t] == here.stack.weights.each[t]
        torch.testing.assert_close(plain.a[t].norm(), plain.b[t].norm())


def nearly_low(scale: float) -> Callable[[Case], Tensor]:
    """Magnitudes so close to the norms that the base hardly counts."""

    def magnitude(here: Case) -> Tensor:
        adapted = here.base + here.scales[0] * here.stack.b[0] @ here.stack.a[0]
        return adapted.norm(dim=1) * (1 + scale * torch.randn(D_OUT, dtype=torch.float64))

    return magnitude


@pytest.mark.parametrize(("scale", "rank"), [(0.0, 2), (1e-6, 2), (0.05, 8)])
def test_the_rank_follows_the_energy(scale: float, rank: int) -> None:
    here = case()
    magnitudes = (nearly_low(scale)(here), None, None)
    stack, base = dora.fold_magnitudes(here.stack, here.scales, magnitudes, here.rows)
    plain, _ = dora.as_factors(stack, base, DRAWS)
    assert plain.ranks == (rank, 3, 4)

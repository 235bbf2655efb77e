"""How many directions are kept."""

import pytest
import torch

from robustmerge_kit.ranks import energy_rank, retained, spend_budget


def values(*s: float) -> torch.Tensor:
    return torch.tensor(s, dtype=torch.float64)


@pytest.mark.parametrize(
    ("s", "energy", "rank"),
    [
        ((3.0, 1.0), 0.9, 1),
        ((3.0, 1.0), 0.91, 2),
        ((3.0, 1.0, 0.0), 1.0, 2),
        ((1.0, 1e-13, 0.0), 1.0, 2),
        ((1.0, 1.0, 1.0, 1.0), 0.5, 2),
        ((1.0, 1.0, 1.0, 1.0), 0.51, 3),
        ((2.0, 1.0), 1e-9, 1),
        ((0.0, 0.0), 0.9, 1),
        ((0.0, 0.0), 1.0, 1),
    ],
)
def test_energy(s, energy, rank):
    assert energy_rank(values(*s), energy) == rank


def test_retained_grows_to_one():
    s = values(3, 2, 1, 0)
    kept = [retained(s, k) for k in range(6)]
    assert kept == sorted(kept)
    assert kept[0] == 0.0
    assert kept[1] == pytest.approx(9 / 14)
    assert kept[3:] == [1.0, 1.0, 1.0]
    assert retained(values(0, 0), 1) == 1.0


SPECTRA = {"b": values(4, 2, 1, 0), "a": values(4, 2, 1, 0), "c": values(1, 0.9, 0.8), "zero": values(0, 0)}
SHAPES = {"a": (10, 10), "b": (10, 10), "c": (30, 10), "zero": (10, 10)}


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({"average": 1.0}, {"a": 1, "b": 1, "c": 2, "zero": 0}),
        ({"average": 1.0, "score": "absolute"}, {"a": 2, "b": 1, "c": 1, "zero": 0}),
        ({"average": 1.25, "score": "absolute"}, {"a": 2, "b": 2, "c": 1, "zero": 0}),
        ({"average": 100.0}, {"a": 3, "b": 3, "c": 3, "zero": 0}),
        ({"average": 100.0, "cap": 2}, {"a": 2, "b": 2, "c": 2, "zero": 0}),
        ({"average": 0.1}, {"a": 1, "b": 1, "c": 1, "zero": 0}),
        # A direction costs 20, 20, 40; the second is worth .19 / 20, .19 / 20, .33 / 40, the third .05 / 20 and .26 / 40.
        ({"average": 2.0, "cost": "params"}, {"a": 2, "b": 2, "c": 3, "zero": 0}),
        ({"average": 1.0, "cost": "params"}, {"a": 2, "b": 1, "c": 1, "zero": 0}),
        # After a and b 20 are left: too few for c, enough for the third of a.
        ({"average": 1.4, "cost": "params"}, {"a": 3, "b": 2, "c": 1, "zero": 0}),
    ],
)
def test_budget(options, ranks):
    assert spend_budget(SPECTRA, SHAPES, **options) == ranks
    backwards = dict(reversed(SPECTRA.items()))
    assert spend_budget(backwards, SHAPES, **options) == ranks


def test_budget_is_the_best_split():
    """Against every split of the budget over three sites."""
    draw = torch.Generator().manual_seed(0)
    spectra = {name: torch.rand(5, generator=draw, dtype=torch.float64).sort(descending=True).values for name in "xyz"}
    ranks = spend_budget(spectra, dict.fromkeys("xyz", (4, 4)), average=3.0, score="absolute")

    def kept(x: int, y: int, z: int) -> float:
        return sum(float((spectra[name][:k] ** 2).sum()) for name, k in zip("xyz", (x, y, z), strict=True))

    best = max(kept(x, y, 9 - x - y) for x in range(1, 6) for y in range(1, 6) if 1 <= 9 - x - y <= 5)
    assert kept(ranks["x"], ranks["y"], ranks["z"]) == pytest.approx(best)
    assert sum(ranks.values()) == 9

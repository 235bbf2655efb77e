"""Figures of an analysis where they are known beforehand: two updates with singular vectors and values of one's choice."""

import math
from pathlib import Path

import pytest
from chosen_updates import SITE, S, U, V, delta, of_two, write
from small_adapters import write_recipe

from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.report.analysis import analyze

CLOSE = 2e-6
ANGLE = math.radians(30)
KNOWN = {
    "identical": (delta(), dict(cosine=1, norm_ratio=1, left=0, right=0, shared=1, signs=0)),
    "opposite": (delta(s=-S), dict(cosine=-1, norm_ratio=1, left=0, right=0, shared=1, signs=1)),
    "scaled": (delta(s=4 * S), dict(cosine=1, norm_ratio=0.25, left=0, right=0, shared=1, signs=0)),
    "orthogonal": (delta(U[:, 3:6], S, V[:, 3:6]), dict(cosine=0, norm_ratio=1, left=90, right=90, shared=0)),
    "other inputs": (delta(U[:, :3], S, V[:, 3:6]), dict(cosine=0, norm_ratio=1, left=0, right=90, shared=0)),
    "rotated outputs": (
        delta(math.cos(ANGLE) * U[:, :3] + math.sin(ANGLE) * U[:, 3:6]),
        dict(cosine=math.cos(ANGLE), norm_ratio=1, left=30, right=0, shared=math.cos(ANGLE) ** 2),
    ),
    "rotated on both sides": (
        delta(
            math.cos(ANGLE) * U[:, :3] + math.sin(ANGLE) * U[:, 3:6],
            S,
            math.cos(ANGLE) * V[:, :3] + math.sin(ANGLE) * V[:, 3:6],
        ),
        dict(cosine=math.cos(ANGLE) ** 2, norm_ratio=1, left=30, right=30, shared=math.cos(ANGLE) ** 4),
    ),
    # Within one subspace the order of the values is turned round: <D_1, D_2> = 3 + 4 + 3 over 14.
    "same directions, other weights": (
        delta(s=S.flip(0)),
        dict(cosine=10 / 14, norm_ratio=1, left=0, right=0, shared=1),
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_pairs_whose_figures_are_known(tmp_path: Path, case: str):
    other, known = KNOWN[case]
    found = of_two(tmp_path, delta(), other)
    for pair in (found.totals.pairs[0], found.sites[0].pairs[0]):
        assert pair.cosine == pytest.approx(known["cosine"], abs=CLOSE)
        assert pair.norm_ratio == pytest.approx(known["norm_ratio"], rel=CLOSE)
        for side, subspaces in (("left", pair.left), ("right", pair.right)):
            assert subspaces is not None
            # An angle of 0 is known to the root of the precision of its cosine.
            assert [subspaces.smallest, subspaces.median, subspaces.largest] == pytest.approx([known[side]] * 3, abs=0.05)
            assert subspaces.overlap == pytest.approx(math.cos(math.radians(known[side])) ** 2, abs=CLOSE)
        assert [pair.shared_first, pair.shared_second] == pytest.approx([known["shared"]] * 2, abs=CLOSE)
        if "signs" in known:
            assert pair.sign_conflict == known["signs"]
    assert found.totals.pairs[0].angles_left == pytest.approx([known["left"]] * 3, abs=0.05)
    assert found.totals.pairs[0].angles_right == pytest.approx([known["right"]] * 3, abs=0.05)
    assert found.sites[0].pairs[0].angles_left == ()


# projection, crosstalk, destroyed, top left, top right, top ratio of both adapters, after linear (the mean)
MERGED = {
    "identical": ([(1, 0, 0, 1, 1, 1)] * 2, 1),
    "scaled": ([(2.5, 0, 0, 1, 1, 2.5), (0.625, 0, 0, 1, 1, 0.625)], 1),
    "orthogonal": ([(0.5, 0, 0, 1, 1, 0.5)] * 2, 1),
    "opposite": ([(0, 0, 1, 0, 0, 0)] * 2, 0),
}


@pytest.mark.parametrize("case", MERGED)
def test_merges_whose_figures_are_known(tmp_path: Path, case: str):
    other = KNOWN[case][0]
    if case == "orthogonal":
        # Equal singular values would leave the directions of their sum open.
        other = delta(U[:, 3:6], S, V[:, 3:6])
        other = (other[0] * 1.001, other[1])
    expected, kept = MERGED[case]
    found = of_two(tmp_path, delta(), other)
    merge = found.totals.merges[0]
    assert merge.invented == pytest.approx(0, abs=1e-6)
    assert (merge.norm > 0) == bool(kept)
    for task, (projection, crosstalk, destroyed, *top) in zip(merge.tasks, expected, strict=True):
        assert task is not None
        assert task.projection == pytest.approx(projection, abs=2e-3)
        assert task.crosstalk == pytest.approx(crosstalk, abs=2e-3)
        assert task.destroyed == pytest.approx(destroyed, abs=1e-5)
        assert [task.top.left, task.top.right, task.top.ratio] == pytest.approx(top, abs=2e-3)


def test_crosstalk_and_destroyed_where_two_updates_use_the_same_directions(tmp_path: Path):
    """D_1 = diag(3, 2, 1), D_2 = diag(1, 2, 3) in the same directions: the mean is diag(2, 2, 2)."""
    task = of_two(tmp_path, delta(), delta(s=S.flip(0))).totals.merges[0].tasks[0]
    assert task is not None
    projection = 12 / 14
    crosstalk = math.sqrt(12 - 14 * projection**2) / math.sqrt(14)
    assert task.projection == pytest.approx(projection, rel=1e-5)
    assert task.crosstalk == pytest.approx(crosstalk, rel=1e-5)
    assert task.destroyed == pytest.approx(crosstalk**2 / (projection**2 + crosstalk**2), rel=1e-5)
    assert task.cosine == pytest.approx(12 / math.sqrt(14 * 12), rel=1e-5)


def test_a_merge_outside_of_all_updates_is_invented(tmp_path: Path):
    """PEFT's way adds factors: (B_1 + B_2)(A_1 + A_2) has cross terms, but stays within the joint subspaces."""
    other = delta(U[:, 3:6], S, V[:, 3:6])
    joint = of_two(tmp_path / "a", delta(), other, "peft_linear")
    pruned = of_two(tmp_path / "b", delta(), other, "robustmerge")
    assert joint.totals.merges[0].invented == pytest.approx(0, abs=1e-6)
    assert pruned.totals.merges[0].invented > 0.1


def test_the_rank_asked_for_and_the_energy_it_keeps(tmp_path: Path):
    """The mean of two orthogonal updates with values 3, 2, 1: energies 9 9 4 4 1 1 of 28 by rank."""
    folders = [write(tmp_path, "one", {SITE: delta()}), write(tmp_path, "two", {SITE: delta(U[:, 3:6], S, V[:, 3:6])})]
    found = analyze(load_recipe(write_recipe(tmp_path, folders, "linear", output={"rank": 3})))
    merge = found.totals.merges[0]
    assert merge.energy == pytest.approx([9 / 28, 18 / 28, 22 / 28, 26 / 28, 27 / 28, 1], rel=1e-5)
    assert merge.kept == pytest.approx(22 / 28, rel=1e-5)
    assert merge.rank == 3
    assert len(merge.spectrum) == 6
    assert found.sites[0].merges[0].kept == pytest.approx(22 / 28, rel=1e-5)


def test_ranks_by_energy_are_decided_before_the_figures(tmp_path: Path):
    folders = [write(tmp_path, "one", {SITE: delta()}), write(tmp_path, "two", {SITE: delta(U[:, 3:6], S, V[:, 3:6])})]
    found = analyze(load_recipe(write_recipe(tmp_path, folders, "linear", output={"rank": {"energy": 0.8}})))
    assert found.totals.merges[0].rank == 4

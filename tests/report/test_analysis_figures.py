"""Figures of an analysis: cases whose figures are known, and dense float64 arithmetic on what `run` writes."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_adapters import PREFIX, entry, read_deltas, run, write_adapter, write_recipe
from torch import Tensor

from robustmerge_kit.adapters import pack
from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.report.analysis import Analysis, analyze, parse_candidates
from robustmerge_kit.report.analysis import signs as signs_module
from robustmerge_kit.report.analysis.merges import match
from robustmerge_kit.report.analysis.records import Pair, Site
from robustmerge_kit.resources import Resources

SITE = "model.layers.0.q_proj"
D_OUT, D_IN = 14, 12
CLOSE = 2e-6


def basis(rows: int, columns: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=draw, dtype=torch.float64))[0]


U, V = basis(D_OUT, 9, 1), basis(D_IN, 9, 2)
S = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)


def delta(u: Tensor = U[:, :3], s: Tensor = S, v: Tensor = V[:, :3]) -> tuple[Tensor, Tensor]:
    """B and A of an update with these singular vectors and values, at scale 1."""
    return u * s, v.mT


def write(place: Path, name: str, pairs: dict[str, tuple[Tensor, Tensor]], alpha: float | None = None) -> Path:
    tensors: dict[str, Tensor] = {}
    ranks = {a.shape[0] for _, a in pairs.values()}
    for site, (b, a) in pairs.items():
        tensors[f"{PREFIX}{site}.lora_A.weight"] = a.clone(memory_format=torch.contiguous_format)
        tensors[f"{PREFIX}{site}.lora_B.weight"] = b.clone(memory_format=torch.contiguous_format)
    r = max(ranks)
    where = {site: (b.shape[0], a.shape[1]) for site, (b, a) in pairs.items()}
    return write_adapter(place / name, tensors=tensors, where=where, r=r, alpha=alpha or float(r))


def of_two(
    place: Path, one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], method: str = "linear", compare: str = ""
) -> Analysis:
    folders = [write(place, "one", {SITE: one}), write(place, "two", {SITE: two})]
    recipe = load_recipe(write_recipe(place, folders, method))
    return analyze(recipe, parse_candidates(compare) if compare else [])


# --- two updates whose figures are known ------------------------------------------------------------------------------

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


# --- against dense arithmetic -----------------------------------------------------------------------------------------


def dense_pair(one: Tensor, two: Tensor) -> dict[str, float]:
    (u1, s1, v1), (u2, s2, v2) = (thin(x) for x in (one, two))
    left, right = torch.linalg.svdvals(u1.mT @ u2), torch.linalg.svdvals(v1.mT @ v2)
    return {
        "cosine": float((one * two).sum() / (one.norm() * two.norm())),
        "norm_ratio": float(one.norm() / two.norm()),
        "left": float(left.square().mean()),
        "right": float(right.square().mean()),
        "largest": math.degrees(math.acos(min(1.0, float(right[-1])))),
        "first": float((u2 @ u2.mT @ one @ v2 @ v2.mT).norm() ** 2 / one.norm() ** 2),
        "second": float((u1 @ u1.mT @ two @ v1 @ v1.mT).norm() ** 2 / two.norm() ** 2),
        "signs": float(((one * two) < 0).double().mean()),
        "s": float(s1[0] / s2[0]),
    }


def thin(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    k = int((s > 1e-5 * s[0]).sum())
    return u[:, :k], s[:k], vh[:k].mT


def best_match(u: Tensor, s: Tensor, v: Tensor, merged: Tensor) -> tuple[list[float], list[float]]:
    """Top direction and mean of the rest, by trying every assignment."""
    um, sm, vm = thin(merged)
    left, right = (u.mT @ um).abs(), (v.mT @ vm).abs()
    score = left * right
    if len(sm) >= len(s):
        choices = itertools.permutations(range(len(sm)), len(s))
        best = max(choices, key=lambda columns: sum(float(score[i, c]) for i, c in enumerate(columns)))
        found = dict(enumerate(best))
    else:
        rows = max(
            itertools.permutations(range(len(s)), len(sm)), key=lambda rows: sum(float(score[r, c]) for c, r in enumerate(rows))
        )
        found = {r: c for c, r in enumerate(rows)}
    figures = [
        [float(left[i, found[i]]), float(right[i, found[i]]), float(sm[found[i]] / s[i])] if i in found else [0.0] * 3
        for i in range(len(s))
    ]
    rest = torch.tensor(figures[1:]).mean(0).tolist() if len(figures) > 1 else []
    return figures[0], rest


WEIGHTS = (1.0, 0.5, -2.0)
RANKS = (3, 2, 4)


def folders(place: Path, shapes: dict[str, tuple[int, int]]) -> list[Path]:
    made: list[Path] = []
    for t, r in enumerate(RANKS):
        draw = torch.Generator().manual_seed(t)
        pairs = {
            site: (torch.randn(d_out, r, generator=draw), torch.randn(r, d_in, generator=draw))
            for site, (d_out, d_in) in shapes.items()
        }
        made.append(write(place, f"adapter{t}", pairs, alpha=2.0 * r))
    return made


SHAPES = {"model.layers.0.q_proj": (14, 12), "model.layers.1.q_proj": (14, 12), "model.layers.1.up_proj": (10, 5)}
METHODS = {
    "linear": {},
    "robustmerge": {},
    "ties": {"parameters": {"density": 0.4}},
    "tsv_m": {},
    "task_arithmetic": {"output": {"rank": 2}},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_figure_agrees_with_dense_arithmetic_in_float64(tmp_path: Path, method: str):
    made = folders(tmp_path, SHAPES)
    entries = [entry(folder, weight) for folder, weight in zip(made, WEIGHTS, strict=True)]
    keys = {"output": {}, **METHODS[method]}
    recipe = write_recipe(tmp_path, entries, method, **{**keys, "output": {"dtype": "float32", **keys["output"]}})
    found = analyze(load_recipe(recipe))
    run(recipe, tmp_path / "out")
    merged = read_deltas(tmp_path / "out")
    updates = [
        {site: weight * x for site, x in read_deltas(folder).items()} for folder, weight in zip(made, WEIGHTS, strict=True)
    ]
    assert [site.site for site in found.sites] == sorted(SHAPES)
    for site in found.sites:
        for pair in site.pairs:
            expected = dense_pair(updates[pair.first][site.site], updates[pair.second][site.site])
            assert pair.left is not None
            assert pair.right is not None
            measured = {
                "cosine": pair.cosine,
                "norm_ratio": pair.norm_ratio,
                "left": pair.left.overlap,
                "right": pair.right.overlap,
                "largest": pair.right.largest,
                "first": pair.shared_first,
                "second": pair.shared_second,
                "signs": pair.sign_conflict,
            }
            del expected["s"]
            assert measured == pytest.approx(expected, rel=1e-5, abs=1e-5)
        check_merge(site.merges[0], [each[site.site] for each in updates], merged[site.site])
    together = [torch.cat([each[site].flatten() for site in SHAPES]) for each in updates]
    whole = torch.cat([merged[site].flatten() for site in SHAPES])
    for pair in found.totals.pairs:
        one, two = together[pair.first], together[pair.second]
        assert pair.cosine == pytest.approx(float(one @ two / (one.norm() * two.norm())), abs=1e-6)
        assert pair.sign_conflict == pytest.approx(float((one * two < 0).double().mean()), abs=1e-6)
        first = [updates[pair.first][site.site].norm() ** 2 * each.shared_first for site, each in at_sites(found, pair)]
        assert pair.shared_first == pytest.approx(float(sum(first) / one.norm() ** 2), rel=1e-5)
    merges = [site.merges[0] for site in found.sites]
    invented = sum(merge.invented * merge.norm**2 for merge in merges) / sum(merge.norm**2 for merge in merges)
    assert found.totals.merges[0].invented == pytest.approx(invented, abs=1e-9)
    for task, one in zip(found.totals.merges[0].tasks, together, strict=True):
        assert task is not None
        assert task.projection == pytest.approx(float(whole @ one / one.norm() ** 2), abs=1e-5)
        assert task.cosine == pytest.approx(float(whole @ one / (one.norm() * whole.norm())), abs=1e-5)
    assert found.totals.merges[0].norm == pytest.approx(float(whole.norm()), rel=1e-5)


def at_sites(found: Analysis, pair: Pair) -> list[tuple[Site, Any]]:
    """The same pair at every site."""
    wanted = pair.first, pair.second
    return [(site, each) for site in found.sites for each in site.pairs if (each.first, each.second) == wanted]


def check_merge(merge, updates: Sequence[Tensor], merged: Tensor) -> None:
    assert merge.norm == pytest.approx(float(merged.norm()), rel=1e-5)
    left, right = (torch.linalg.svd(torch.cat(xs, 1))[0] for xs in (updates, [x.mT for x in updates]))
    ranks = [int(torch.linalg.matrix_rank(torch.cat(xs, 1), rtol=1e-6)) for xs in (updates, [x.mT for x in updates])]
    left, right = left[:, : ranks[0]], right[:, : ranks[1]]
    inside = float((left.mT @ merged @ right).norm() ** 2 / merged.norm() ** 2)
    assert merge.invented == pytest.approx(1 - inside, abs=1e-5)
    for task, update in zip(merge.tasks, updates, strict=True):
        u, s, v = thin(update)
        seen = u @ u.mT @ merged @ v @ v.mT
        projection = float((merged * update).sum() / update.norm() ** 2)
        assert task.projection == pytest.approx(projection, abs=1e-5)
        assert task.crosstalk == pytest.approx(float((seen - projection * update).norm() / update.norm()), abs=1e-5)
        share = float((seen * update).sum() ** 2 / (seen.norm() ** 2 * update.norm() ** 2)) if projection > 0 else 0.0
        assert task.destroyed == pytest.approx(1 - share, abs=1e-5)
        top, rest = best_match(u, s, v, merged)
        assert [task.top.left, task.top.right, task.top.ratio] == pytest.approx(top, abs=1e-4)
        if rest:
            assert [task.rest.left, task.rest.right, task.rest.ratio] == pytest.approx(rest, abs=1e-4)


def test_spectra_of_the_updates_and_of_the_merge_are_those_of_dense_matrices(tmp_path: Path):
    made = folders(tmp_path, SHAPES)
    recipe = load_recipe(write_recipe(tmp_path, made, "task_arithmetic"))
    found = analyze(recipe)
    deltas = [read_deltas(folder) for folder in made]
    for site in found.sites:
        for update, each in zip(site.updates, deltas, strict=True):
            assert update is not None
            s = torch.linalg.svdvals(each[site.site])[: update.rank]
            assert update.spectrum == pytest.approx(s.tolist(), rel=1e-5)
            assert update.norm == pytest.approx(float(s.norm()), rel=1e-5)
        s = torch.linalg.svdvals(sum(each[site.site] for each in deltas))
        assert site.merges[0].spectrum == pytest.approx(s[: len(site.merges[0].spectrum)].tolist(), rel=1e-5)


def test_pruned_and_scaled_spectra_follow_the_definition(tmp_path: Path):
    (folder,) = folders(tmp_path, {SITE: (14, 12)})[:1]
    found = analyze(
        load_recipe(write_recipe(tmp_path, [folder], "robustmerge", parameters={"variant": "paper", "density": 0.5}))
    )
    assert found.pruning["density"] == 0.5
    draw = torch.Generator().manual_seed(0)
    b, a = torch.randn(14, 3, generator=draw).double(), torch.randn(3, 12, generator=draw).double()

    def pruned(x: Tensor) -> Tensor:
        k = int(x.numel() * 0.5)
        return x * (x.abs() >= x.abs().flatten().kthvalue(k).values)

    scales = a.abs().sum(1) / pruned(a).abs().sum(1)
    update = found.sites[0].updates[0]
    assert update is not None
    alpha_over_r = 2.0
    plain = torch.linalg.svdvals(alpha_over_r * pruned(b) @ pruned(a))[:3]
    scaled = torch.linalg.svdvals(alpha_over_r * pruned(b) * scales @ pruned(a))[:3]
    assert update.pruned == pytest.approx(plain.tolist(), rel=1e-5)
    assert update.scaled == pytest.approx(scaled.tolist(), rel=1e-5)


def test_factor_values_know_uniform_from_gaussian(tmp_path: Path):
    draw = torch.Generator().manual_seed(0)
    b, a = 0.3 * torch.randn(4000, 8, generator=draw), torch.rand(8, 4000, generator=draw) - 0.5
    found = analyze(load_recipe(write_recipe(tmp_path, [write(tmp_path, "one", {SITE: (b, a)})], "linear")))
    update = found.totals.updates[0]
    assert update is not None
    assert update.a.kurtosis == pytest.approx(-1.2, abs=0.02)
    assert update.b.kurtosis == pytest.approx(0, abs=0.1)
    assert [update.a.rms, update.b.rms] == pytest.approx([12**-0.5, 0.3], rel=0.02)
    assert update.a.largest == pytest.approx(3**0.5, rel=0.02)
    bins = found.totals.bins
    assert sum(update.a.histogram) == pytest.approx(1)
    assert len(update.a.histogram) == len(bins) - 1
    beyond = [share for share, low in zip(update.a.histogram, bins[:-1], strict=True) if low >= 1.75 or low < -1.875]
    assert sum(beyond) == 0


def test_matching_is_one_to_one_and_prefers_the_larger_sum():
    left = torch.tensor([[0.9, 0.8], [0.85, 0.1]], dtype=torch.float64)
    top, rest = match(torch.tensor([2.0, 1.0]).double(), left, torch.ones(2, 2).double(), torch.tensor([4.0, 3.0]).double())
    assert (top.left, top.ratio) == (0.8, 1.5)
    assert rest is not None
    assert (rest.left, rest.ratio) == (0.85, 4.0)


def test_a_direction_without_partner_counts_as_gone():
    one = torch.ones(1, 1, dtype=torch.float64)
    _, rest = match(
        torch.tensor([2.0, 1.0]).double(), torch.cat([one, 0 * one]), torch.cat([one, 0 * one]), torch.ones(1).double()
    )
    assert rest is not None
    assert (rest.left, rest.right, rest.ratio) == (0.0, 0.0, 0.0)


# --- signs ------------------------------------------------------------------------------------------------------------


def test_sign_conflict_of_many_rows_is_an_estimate_with_an_honest_error(tmp_path: Path):
    shapes = {f"model.layers.{i}.q_proj": (900, 40) for i in range(8)}
    made = folders(tmp_path, shapes)[:2]
    found = analyze(load_recipe(write_recipe(tmp_path, made, "linear")))
    one, two = (read_deltas(folder) for folder in made)
    errors: list[float] = []
    for site in found.sites:
        exact = float((one[site.site] * two[site.site] < 0).double().mean())
        assert site.signs.rows == signs_module.ROWS
        assert site.pairs[0].sign_conflict is not None
        errors.append((site.pairs[0].sign_conflict - exact) / site.signs.error)
    assert max(map(abs, errors)) < 4
    assert max(map(abs, errors)) > 0.2
    (said,) = (each for each in found.exactness if "sign" in each.figures)
    assert said.error is not None
    assert 0 < said.error < 0.02


def test_sign_conflict_is_exact_up_to_the_number_of_rows_looked_at(tmp_path: Path):
    found = analyze(load_recipe(write_recipe(tmp_path, folders(tmp_path, {SITE: (signs_module.ROWS, 8)})[:2], "linear")))
    assert found.sites[0].signs.error == 0
    (said,) = (each for each in found.exactness if "sign" in each.figures)
    assert said.error is None


def test_zero_entries_have_no_sign(tmp_path: Path):
    """Two updates that share one entry, with opposite signs, and have others where the other one is 0."""
    b1, b2 = torch.zeros(6, 1), torch.zeros(6, 1)
    a = torch.zeros(1, 5)
    b1[:3], b2[2:4], a[0, 0] = 1, -1, 1
    found = of_two(tmp_path, (b1, a), (b2, a))
    assert found.sites[0].pairs[0].sign_conflict == 1
    assert found.sites[0].signs.cancelled == pytest.approx(1 - 3 / 5)


def test_updates_without_a_common_entry_have_no_sign_conflict(tmp_path: Path):
    b1, b2, a = torch.zeros(6, 1), torch.zeros(6, 1), torch.ones(1, 5)
    b1[:3], b2[3:] = 1, 1
    assert of_two(tmp_path, (b1, a), (b2, a)).sites[0].pairs[0].sign_conflict is None


def test_blocks_of_rows_do_not_change_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = load_recipe(write_recipe(tmp_path, folders(tmp_path, {SITE: (100, 30)}), "linear"))
    whole = analyze(recipe)
    monkeypatch.setattr(signs_module, "BLOCK_ENTRIES", 7 * 3 * 30)
    parts = analyze(recipe)
    assert parts.sites[0].pairs == whole.sites[0].pairs
    assert parts.sites[0].signs.rows == whole.sites[0].signs.rows
    assert parts.sites[0].signs.cancelled == pytest.approx(whole.sites[0].signs.cancelled)


# --- what may be missing ----------------------------------------------------------------------------------------------


def test_zero_and_missing_updates_have_no_figures(tmp_path: Path):
    other = "model.layers.0.v_proj"
    nothing = (torch.zeros(D_OUT, 3), V[:, :3].mT.float())
    made = [
        write(tmp_path, "whole", {SITE: delta(), other: delta()}),
        write(tmp_path, "zero", {SITE: nothing, other: delta()}),
        write(tmp_path, "lacking", {other: delta(s=2 * S)}),
    ]
    found = analyze(load_recipe(write_recipe(tmp_path, made, "linear", missing="zero")))
    q, v = found.sites
    assert [update is not None for update in q.updates] == [True, False, False]
    assert q.pairs == ()
    assert [task is not None for task in q.merges[0].tasks] == [True, False, False]
    assert q.merges[0].tasks[0].projection == pytest.approx(1 / 3)  # pyright: ignore[reportOptionalMemberAccess]
    assert [(pair.first, pair.second) for pair in v.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert found.totals.norm_ratio == pytest.approx(2)
    assert found.totals.pairs[0].cosine == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("method", ["linear", "robustmerge", "ties", "peft_linear"])
def test_untrained_adapters_alone_are_told_apart(tmp_path: Path, method: str):
    nothing = (torch.zeros(D_OUT, 3), V[:, :3].mT.float())
    made = [write(tmp_path, name, {SITE: nothing}) for name in "ab"]
    found = analyze(load_recipe(write_recipe(tmp_path, made, method)))
    assert found.totals.updates == (None, None)
    assert [one.rule for one in found.verdict].count("untrained") == 2


@pytest.mark.parametrize("space", ["full", "core", "knots", "ctm", "factor"])
def test_every_space_can_be_compared(tmp_path: Path, space: str):
    found = of_two(tmp_path, delta(), delta(U[:, 3:6], S, V[:, 3:6]), compare=f"ties:space={space}:density=0.5")
    assert found.methods[1].space == space
    assert found.methods[1].parameters["density"] == 0.5
    assert len(found.totals.merges) == 2


def test_fused_experts_have_the_figures_of_the_same_updates_apart(tmp_path: Path):
    """Three experts in one pair of factors; the second adapter's last expert is untrained."""
    fused: list[Path] = []
    apart: list[Path] = []
    for t in range(2):
        draw = torch.Generator().manual_seed(t)
        a, b = torch.randn(3, 2, 6, generator=draw), torch.randn(3, 8, 2, generator=draw)
        if t:
            b[2] = 0
        stored = dict(zip("AB", pack(a, b, "peft"), strict=True))
        names = {f"{PREFIX}m.experts.lora_{half}.weight": value.contiguous() for half, value in stored.items()}
        where = {"m.experts": (8, 6)}
        keys = {"r": 2, "alpha": 4.0, "target_modules": []}
        fused.append(
            write_adapter(tmp_path / f"fused{t}", tensors=names, where=where, target_parameters=["experts.down_proj"], **keys)
        )
        each = {f"m.experts.down_proj[{e}]": (b[e], a[e]) for e in range(3)}
        apart.append(write(tmp_path, f"apart{t}", each, alpha=4.0))
    found = analyze(load_recipe(write_recipe(tmp_path, fused, "robustmerge")), parse_candidates("ties:density=0.5"))
    expected = analyze(load_recipe(write_recipe(tmp_path, apart, "robustmerge")), parse_candidates("ties:density=0.5"))
    assert [site.site for site in found.sites] == [f"m.experts.down_proj[{e}]" for e in range(3)]
    assert [len(site.pairs) for site in found.sites] == [1, 1, 0]
    assert found.sites == expected.sites
    assert found.totals == expected.totals


def test_dora_updates_are_judged_by_their_deltas(tmp_path: Path):
    """D = diag(m / |W + B A|) (W + B A) - W by rows, which is not of low rank."""
    base = torch.randn(8, 6, generator=torch.Generator().manual_seed(7))
    (tmp_path / "base").mkdir()
    save_file({f"{SITE}.weight": base}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    deltas: list[Tensor] = []
    made: list[Path] = []
    for t in range(2):
        draw = torch.Generator().manual_seed(t)
        b, a = 0.3 * torch.randn(8, 2, generator=draw), 0.3 * torch.randn(2, 6, generator=draw)
        adapted = (base + b @ a).double()
        magnitude = adapted.norm(dim=1) * (1 + 0.1 * torch.randn(8, generator=draw))
        deltas.append(magnitude[:, None] / adapted.norm(dim=1, keepdim=True) * adapted - base.double())
        names = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector.weight": magnitude.float()}
        tensors = {f"{PREFIX}{SITE}.{name}": value for name, value in names.items()}
        made.append(write_adapter(tmp_path / f"a{t}", tensors=tensors, where={SITE: (8, 6)}, r=2, alpha=2.0, use_dora=True))
    recipe = write_recipe(tmp_path, made, "linear", base_model=str(tmp_path / "base"), dora="delta", output={"rank": 6})
    found = analyze(load_recipe(recipe), parse_candidates("tsv_m"))
    for update, expected in zip(found.sites[0].updates, deltas, strict=True):
        assert update is not None
        assert update.norm == pytest.approx(float(expected.norm()), rel=1e-3)
    expected = float((deltas[0] * deltas[1]).sum() / (deltas[0].norm() * deltas[1].norm()))
    assert found.totals.pairs[0].cosine == pytest.approx(expected, abs=5e-3)
    task = found.totals.merges[0].tasks[0]
    assert task is not None
    mean = (deltas[0] + deltas[1]) / 2
    assert task.projection == pytest.approx(float((mean * deltas[0]).sum() / deltas[0].norm() ** 2), abs=5e-3)


def test_the_report_does_not_depend_on_the_number_of_workers(tmp_path: Path):
    recipe = load_recipe(write_recipe(tmp_path, folders(tmp_path, SHAPES), "dare_ties", parameters={"density": 0.5}))
    reports = [analyze(recipe, resources=Resources(workers=workers)).model_dump_json() for workers in (1, 3)]
    assert reports[0] == reports[1]

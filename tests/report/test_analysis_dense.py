"""Figures of an analysis against dense float64 arithmetic on what `run` writes."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from chosen_updates import SHAPES, SITE, folders, write
from small_adapters import entry, read_deltas, run, write_recipe
from torch import Tensor

from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.report.analysis import Analysis, analyze
from robustmerge_kit.report.analysis.merges import match
from robustmerge_kit.report.analysis.records import Pair, Site
from robustmerge_kit.resources import Resources

WEIGHTS = (1.0, 0.5, -2.0)
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


def test_the_report_does_not_depend_on_the_number_of_workers(tmp_path: Path):
    recipe = load_recipe(write_recipe(tmp_path, folders(tmp_path, SHAPES), "dare_ties", parameters={"density": 0.5}))
    reports = [analyze(recipe, resources=Resources(workers=workers)).model_dump_json() for workers in (1, 3)]
    assert reports[0] == reports[1]

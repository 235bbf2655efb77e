"""Sign conflicts in an analysis: counted up to a number of rows, estimated beyond."""

from pathlib import Path

import pytest
import torch
from chosen_updates import SITE, folders, of_two
from small_adapters import read_deltas, write_recipe

from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.report.analysis import analyze
from robustmerge_kit.report.analysis import signs as signs_module


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

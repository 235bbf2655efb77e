"""Cosines of the inputs of a merge: known relations, a sample that is spread evenly, and how a merge tells of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import entry, factors, read_deltas, run, sites, write_adapter, write_adapters, write_recipe

from robustmerge_kit import conflict
from robustmerge_kit.conflict import Conflict, measure_conflict, sample
from robustmerge_kit.merge import prepare
from robustmerge_kit.output import summary
from robustmerge_kit.plan import Plan
from robustmerge_kit.recipe import load_recipe


def plan_of(place: Path, adapters: list[Any], **keys: Any) -> Plan:
    return prepare(load_recipe(write_recipe(place, adapters, **keys)))


def measured(place: Path, adapters: list[Any], **keys: Any) -> Conflict:
    found = measure_conflict(plan_of(place, adapters, **keys))
    assert found is not None
    return found


def negated(seed: int) -> dict[str, torch.Tensor]:
    return {name: -value if "lora_B" in name else value for name, value in factors(sites(), seed).items()}


def test_known_relations(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one")
    same = write_adapter(tmp_path / "same", alpha=80.0)
    opposite = write_adapter(tmp_path / "opposite", tensors=negated(0), alpha=1.0)
    found = measured(tmp_path, [one, same, opposite])
    expected = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    for row, wanted in zip(found.cosines, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)
    assert found.lowest in ((0, 2), (1, 2))
    assert found.sites == 4


def test_against_dense_float64(tmp_path: Path) -> None:
    names = [write_adapter(tmp_path / f"a{i}", i, r=2 + i, dtype=torch.bfloat16) for i in range(3)]
    deltas = [read_deltas(name) for name in names]
    flat = torch.stack([torch.cat([delta[site].reshape(-1) for site in sites()]) for delta in deltas])
    flat = flat / flat.norm(dim=1, keepdim=True)
    found = measured(tmp_path, [entry(names[0], 3.0), entry(names[1], -2.0), names[2]])
    for row, wanted in zip(found.cosines, flat @ flat.T, strict=True):
        assert row == pytest.approx(wanted.tolist(), abs=1e-6)


def test_a_site_that_an_input_lacks_is_zero_there(tmp_path: Path) -> None:
    whole, half = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", where=sites(1))
    norms = {site: float(delta.norm()) for site, delta in read_deltas(whole).items()}
    shared = sum(norms[site] ** 2 for site in sites(1))
    expected = (shared / sum(norm**2 for norm in norms.values())) ** 0.5
    assert measured(tmp_path, [whole, half], missing="zero").cosines[0][1] == pytest.approx(expected, abs=1e-6)


def test_what_has_no_cosine(tmp_path: Path) -> None:
    untrained = {name: 0 * value if "lora_B" in name else value for name, value in factors(sites(), 0).items()}
    one, zero = write_adapter(tmp_path / "one"), write_adapter(tmp_path / "zero", tensors=untrained)
    found = measured(tmp_path, [one, zero])
    assert (found.cosines[0][1], found.cosines[1][1], found.lowest) == (None, None, None)
    assert measure_conflict(plan_of(tmp_path, [one])) is None


def test_small_inputs_are_measured_whole(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, list(write_adapters(tmp_path, 2)))
    assert sample(plan.steps) == list(plan.steps)


@pytest.mark.parametrize("kinds", [4, 7, 12])
def test_a_sample_is_spread_over_layers_and_kinds_of_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: int
) -> None:
    first = plan_of(tmp_path, list(write_adapters(tmp_path, 2))).steps[0]
    steps = [replace(first, site=f"layers.{layer}.{kind}") for layer in range(32) for kind in range(kinds)]
    monkeypatch.setattr(conflict, "LEAST", 1)
    monkeypatch.setattr(conflict, "SHARE", 24 / len(steps))
    names = [step.site.split(".") for step in sample(steps)]
    assert len(names) == 24
    assert max(Counter(kind for *_, kind in names).values()) <= 24 // kinds + 4
    assert len({kind for *_, kind in names}) >= 0.75 * kinds
    assert max(Counter(int(layer) // 8 for _, layer, _ in names).values()) <= 7


# --- what a merge tells -----------------------------------------------------------------------------------------------


def test_the_receipt_the_card_and_the_summary_tell_of_it(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one")
    other = write_adapter(tmp_path / "oth|er", tensors=negated(0))
    receipt = run(write_recipe(tmp_path, [one, other, write_adapter(tmp_path / "third", 1)], "ties"), tmp_path / "out")
    lowest = receipt.content["conflict"]["lowest"]
    assert lowest["inputs"] == ["one", "oth|er"]
    assert lowest["cosine"] == pytest.approx(-1, abs=1e-6)
    assert receipt.content["conflict"]["sites"] == 4
    line = "largest conflict: one and oth|er, cosine -1.0000"
    assert line in summary(receipt.content, receipt.path)
    assert f"- {line}".replace("|", "\\|") in (tmp_path / "out" / "README.md").read_text().splitlines()


def test_a_single_input_has_no_conflict(tmp_path: Path) -> None:
    receipt = run(write_recipe(tmp_path, [write_adapter(tmp_path / "one")]), tmp_path / "out")
    assert receipt.content["conflict"] is None
    assert not any("conflict" in line for line in summary(receipt.content, receipt.path))


@pytest.mark.parametrize(
    ("cosine", "sites_measured", "line"),
    [
        (-0.25, 4, "largest conflict: a and b, cosine -0.2500"),
        (0.0, 4, "no conflict, least alike: a and b, cosine 0.0000"),
        (-0.25, 3, "largest conflict: a and b, cosine -0.2500, measured at 3 of 4 sites"),
    ],
)
def test_the_words_for_it(tmp_path: Path, cosine: float, sites_measured: int, line: str) -> None:
    receipt = run(write_recipe(tmp_path, list(write_adapters(tmp_path, 2))), tmp_path / "out")
    told = {"lowest": {"inputs": ["a", "b"], "cosine": cosine}, "sites": sites_measured}
    assert line in summary({**receipt.content, "conflict": told}, receipt.path)

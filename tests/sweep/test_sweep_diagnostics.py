"""The score without data: against its definition on dense matrices, and what it must not depend on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import entry, factors, read_deltas, run, sites, write_adapter, write_adapters, write_recipe

from robustmerge_kit.hashing import Hashing
from robustmerge_kit.merge import prepare
from robustmerge_kit.plan import gather
from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.resources import Resources
from robustmerge_kit.sweep.diagnostics import Diagnosis, Diagnostics, diagnose

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("task_arithmetic", {"parameters": {"gain": 0.5}}),
    ("ties", {"parameters": {"density": 0.4}}),
    ("ties", {"space": "core", "parameters": {"density": 0.4}}),
    ("robustmerge", {}),
    ("robustmerge", {"parameters": {"variant": "paper", "density": 0.5}}),
    ("tsv_m", {}),
    ("dare_linear", {"parameters": {"density": 0.5}, "seed": 3}),
    ("svd", {"output": {"rank": 3}}),
    ("linear", {"pre": [{"norm_balance": {"beta": 0.25}}], "post": [{"rescale_output": {"to": "mean_norm"}}]}),
]


def oracle(place: Path, adapters: list[Path], recipe: Path) -> tuple[float, float, list[float]]:
    """Score, energy and preserved_t from dense matrices in float64."""
    run(recipe, place / "merged", overwrite=True)
    merged = read_deltas(place / "merged")
    preserved: list[float] = []
    whole = 0.0
    for adapter in adapters:
        lost = size = 0.0
        for site, delta in read_deltas(adapter).items():
            u, s, vh = torch.linalg.svd(delta)
            k = int((s > 1e-6 * s[0]).sum())
            seen = u[:, :k] @ u[:, :k].T @ merged[site] @ vh[:k].T @ vh[:k]
            lost += float((seen - delta).square().sum())
            size += float(delta.square().sum())
        preserved.append(1 - lost / size)
        whole += size
    energy = sum(float(delta.square().sum()) for delta in merged.values()) / whole
    return sum(preserved) / len(preserved) - max(0.0, energy - 1), energy, preserved


@pytest.mark.parametrize(("method", "keys"), METHODS)
def test_the_score_is_its_definition(method: str, keys: dict[str, Any], tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 3)
    recipe = write_recipe(tmp_path, adapters, method, **keys)
    score, energy, preserved = oracle(tmp_path, adapters, recipe)
    found = diagnose(load_recipe(recipe))
    assert found.score == pytest.approx(score, abs=1e-4)
    assert found.energy == pytest.approx(energy, abs=1e-4)
    assert list(found.preserved) == pytest.approx(preserved, abs=1e-4)
    assert found.worst == min(known for known in found.preserved if known is not None)


def test_weights_do_not_move_what_a_merge_is_compared_with(tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 2)
    recipe = write_recipe(tmp_path, [entry(adapters[0], 1.0), entry(adapters[1], 0.0)], "task_arithmetic")
    found = diagnose(load_recipe(recipe))
    assert found.preserved[0] == pytest.approx(1.0, abs=1e-5)
    assert found.preserved[1] is not None
    assert found.preserved[1] < 0.2
    score, _, preserved = oracle(tmp_path, adapters, recipe)
    assert (found.score, list(found.preserved)) == (pytest.approx(score, abs=1e-4), pytest.approx(preserved, abs=1e-4))


def test_nothing_lost_is_one_and_nothing_merged_is_zero(tmp_path: Path) -> None:
    whole = write_recipe(tmp_path, write_adapters(tmp_path, 1), "task_arithmetic")
    assert diagnose(load_recipe(whole)).score == pytest.approx(1.0, abs=1e-6)
    faint = write_recipe(tmp_path, write_adapters(tmp_path, 1), "task_arithmetic", parameters={"gain": 1e-6})
    assert diagnose(load_recipe(faint)).score == pytest.approx(0.0, abs=1e-5)


def test_a_merge_larger_than_all_updates_pays_for_it(tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 3)
    found = [
        diagnose(load_recipe(write_recipe(tmp_path, adapters, "task_arithmetic", parameters={"gain": gain})))
        for gain in (1.0, 3.0, 30.0)
    ]
    assert found[0].score > found[1].score > found[2].score
    assert found[2].score < -500
    assert found[2].energy == pytest.approx(900 * found[0].energy, rel=1e-4)


def test_an_untrained_adapter_counts_for_nobody(tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 2)
    zero = {name: value * ("lora_A" in name) for name, value in factors(sites(), 9).items()}
    third = write_adapter(tmp_path / "untrained", tensors=zero)
    two = diagnose(load_recipe(write_recipe(tmp_path, adapters, "task_arithmetic")))
    three = diagnose(load_recipe(write_recipe(tmp_path, [*adapters, third], "task_arithmetic")))
    assert three.preserved == (*two.preserved, None)
    assert three.score == pytest.approx(two.score)


def test_a_site_that_only_one_adapter_has(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", 1, where=sites(2))
    two = write_adapter(tmp_path / "two", 2, where=sites(1))
    recipe = write_recipe(tmp_path, [one, two], "task_arithmetic", missing="zero")
    score, _, preserved = oracle(tmp_path, [one, two], recipe)
    found = diagnose(load_recipe(recipe))
    assert (found.score, list(found.preserved)) == (pytest.approx(score, abs=1e-4), pytest.approx(preserved, abs=1e-4))


def figures(found: Diagnosis) -> tuple[Any, ...]:
    return (found.parts(), found.preserved)


@pytest.mark.parametrize(("method", "keys"), [METHODS[2], METHODS[7]])
def test_memory_and_workers_change_nothing(method: str, keys: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, write_adapters(tmp_path, 3), method, **keys))
    inputs = gather(recipe)
    with Hashing(inputs) as hashing:
        small = Diagnostics(inputs, recipe, hashing, Resources(workers=1, memory=1))
        large = Diagnostics(inputs, recipe, hashing, Resources(workers=3))
        found = [figures(each.diagnose(recipe)) for each in (small, large, small, large)]
    assert len({json.dumps(each) for each in found}) == 1
    assert (len(small._kept), len(large._kept)) == (0, 4)


def test_bounds_are_those_of_a_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2), "svd")
    with pytest.raises(Exception, match=r"svd needs output\.rank") as first:
        prepare(recipe)
    with pytest.raises(type(first.value), match=r"svd needs output\.rank"):
        diagnose(load_recipe(recipe))

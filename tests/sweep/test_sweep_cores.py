"""Trials that share the cores of their sites: the same bytes as merges that share nothing, within the memory given."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import factors, sites, write_adapter, write_adapters

from robustmerge_kit import cores
from robustmerge_kit import factors as algebra
from robustmerge_kit.recipe import Recipe, load_recipe, vary
from robustmerge_kit.resources import Resources
from robustmerge_kit.sweep.merging import Merges

TRIALS: list[dict[str, Any]] = [
    {"parameters.gain": 0.5, "adapters[0].parameters.weight": 1.0},
    {"parameters.gain": 2.0, "adapters[0].parameters.weight": -0.3},
    {"parameters.gain": 1.0, "adapters[0].parameters.weight": 0.0},
]

CACHED: dict[str, dict[str, Any]] = {
    "ties in core": {"merge_method": "ties", "space": "core"},
    "ties in knots": {"merge_method": "ties", "space": "knots"},
    "ties in ctm": {"merge_method": "ties", "space": "ctm"},
    "the basis of deltas": {"merge_method": "ties", "space": {"core": {"basis": "deltas"}}},
    "random masks": {"merge_method": "dare_linear", "space": "core", "parameters": {"density": 0.5}, "seed": 3},
    "tsv_m": {"merge_method": "tsv_m"},
    "cut": {"merge_method": "tsv_m", "output": {"rank": 3}},
    "ranks by energy": {"merge_method": "tsv_m", "output": {"rank": {"energy": 0.9}}},
    "pre steps that scale": {"merge_method": "tsv_m", "pre": [{"norm_balance": {"beta": 0.25}}]},
    "post steps": {"merge_method": "ties", "space": "core", "post": [{"rescale_output": {"to": "mean_norm"}}]},
    "statistics of all sites": {"merge_method": "ties", "space": "core", "parameters": {"scope": "global"}},
}
PLAIN: dict[str, dict[str, Any]] = {
    "pre steps that change factors": {"merge_method": "tsv_m", "pre": ["pico"]},
    "no core": {"merge_method": "linear"},
}


RARE = {"ties in knots", "the basis of deltas", "cut", "random masks", "post steps"}
"""Cases that take the way of another."""


def recipe_of(place: Path, **keys: Any) -> Recipe:
    """A sweep over gain and one weight; its adapters lie in the folders `adapter0`, `adapter1`, .. there."""
    content = {
        "adapters": [{"adapter": path.name} for path in sorted(place.glob("adapter?"))],
        **keys,
        "sweep": {
            "search": {"parameters.gain": {"low": 0.1, "high": 4.0}, "adapters[0].parameters.weight": {"low": -1, "high": 1}},
            "evaluate": "diagnostics",
            "trials": 5,
        },
    }
    path = place / "r.yaml"
    path.write_text(json.dumps(content))
    return load_recipe(path)


def trials_of(recipe: Recipe) -> list[Recipe]:
    return [vary(recipe, drawn) for drawn in TRIALS]


def weights_of(merges: Merges, trial: Recipe, out: Path) -> bytes:
    merges.write(trial, out)
    return (out / "adapter_model.safetensors").read_bytes()


def written(recipe: Recipe, trials: list[Recipe], out: Path, memory: int = 512_000_000) -> tuple[list[bytes], Merges]:
    """The weights of trials, merged one after another by one `Merges`."""
    merges = Merges(recipe, Resources(memory=memory))
    try:
        return [weights_of(merges, trial, out) for trial in trials], merges
    finally:
        merges.close()


def check_same(recipe: Recipe, out: Path) -> Merges:
    """Trials equal those without room for cores, byte for byte."""
    trials = trials_of(recipe)
    together, merges = written(recipe, trials, out)
    apart, none = written(recipe, trials, out, memory=1)
    assert (none.cores.limit, none.cores.nbytes) == (0, 0)
    assert together == apart
    assert len(set(together)) >= len(TRIALS) - 1  # steps that set the norm make nothing of the gain
    return merges


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every core that is computed, by the sum of its ranks."""
    seen: list[int] = []
    real = algebra.unweighted_core

    def counted(stack: algebra.FactorStack) -> algebra.Core:
        seen.append(sum(stack.ranks))
        return real(stack)

    monkeypatch.setattr(algebra, "unweighted_core", counted)
    monkeypatch.setattr(cores, "unweighted_core", counted)
    return seen


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in RARE else case for case in {**CACHED, **PLAIN}]
)
def test_trials_are_those_that_share_nothing(case: str, tmp_path: Path) -> None:
    write_adapters(tmp_path, 3, dtype=torch.bfloat16)
    write_adapter(tmp_path / "adapter3", 3, where=sites(1), r=7)
    recipe = recipe_of(tmp_path, missing="zero", **{**CACHED, **PLAIN}[case])
    merges = check_same(recipe, tmp_path / "out")
    assert (merges.cores.nbytes > 0) == (case in CACHED)


def partly_zero() -> dict[str, torch.Tensor]:
    tensors = factors(sites(), 2)
    return {name: value * 0 if "layers.0.q_proj.lora_B" in name else value for name, value in tensors.items()}


def twins() -> dict[str, torch.Tensor]:
    """The factors of the first adapter once more, so that the columns of a stack depend on each other."""
    return factors(sites(), 0)


INPUTS: dict[str, list[dict[str, Any]]] = {
    "float64": [{"dtype": torch.float64}] * 3,
    "more rank than width": [{"r": 9}, {"r": 2}, {"r": 8}],
    "columns that depend on each other": [{}, {"tensors": twins()}, {}],
    "a zero delta": [{}, {}, {"tensors": partly_zero()}],
    "pickled": [{"file": "adapter_model.bin"}] * 3,
}


@pytest.mark.parametrize("case", INPUTS)
def test_all_kinds_of_factors(case: str, tmp_path: Path) -> None:
    for i, options in enumerate(INPUTS[case]):
        write_adapter(tmp_path / f"adapter{i}", i, **options)
    recipe = recipe_of(tmp_path, merge_method="ties", space="core", parameters={"density": 0.5})
    assert check_same(recipe, tmp_path / "out").cores.nbytes > 0


def test_experts_have_cores_of_their_own(tmp_path: Path) -> None:
    where = {"model.layers.0.mlp.experts.down_proj": (6, 5)}
    for t in range(3):
        draw = torch.Generator().manual_seed(t)
        stem = "base_model.model.model.layers.0.mlp.experts."
        tensors = {
            f"{stem}lora_A.weight": torch.randn(8, 6, generator=draw),
            f"{stem}lora_B.weight": torch.randn(5, 8, generator=draw),
        }
        keys: dict[str, Any] = {"target_parameters": ["mlp.experts.down_proj"], "target_modules": None}
        write_adapter(tmp_path / f"adapter{t}", tensors=tensors, where=where, r=2, **keys)
    recipe = recipe_of(tmp_path, merge_method="ties", space="core", parameters={"density": 0.5})
    assert check_same(recipe, tmp_path / "out").cores.nbytes > 0


def test_a_core_is_computed_once_for_equal_members(tmp_path: Path, made: list[int]) -> None:
    write_adapters(tmp_path, 3)
    count = len(sites())
    recipe = recipe_of(tmp_path, merge_method="tsv_m")
    written(recipe, trials_of(recipe) * 2, tmp_path / "out")
    assert sorted(made) == [8] * count + [12] * count  # the trial of weight 0 leaves an adapter out
    made.clear()
    recipe = recipe_of(tmp_path, merge_method="tsv_m", pre=["pico"])
    written(recipe, trials_of(recipe), tmp_path / "out")
    assert len(made) == 2 * count * len(TRIALS)  # by the step, and of what it gives


def test_methods_of_one_sweep_share_cores(tmp_path: Path, made: list[int]) -> None:
    write_adapters(tmp_path, 3)
    recipe = recipe_of(tmp_path, merge_method="tsv_m")
    merges = Merges(recipe, Resources())
    for method in ("tsv_m", "iso_c"):
        merges.write(vary(recipe, TRIALS[0]).model_copy(update={"merge_method": method}), tmp_path / "out")
    merges.diagnose(vary(recipe, TRIALS[1]))
    merges.close()
    # The diagnostics keep the updates as trained, whose cores are their own.
    assert len(made) == 2 * len(sites())


def test_diagnostics_are_the_same(tmp_path: Path) -> None:
    write_adapters(tmp_path, 3)
    recipe = recipe_of(tmp_path, merge_method="ties", space="core")
    merges, other = Merges(recipe, Resources()), Merges(recipe, Resources(memory=1))
    for trial in trials_of(recipe):
        assert merges.diagnose(trial) == other.diagnose(trial)
    assert merges.cores.nbytes > 0
    merges.close()
    other.close()


@pytest.mark.parametrize("sites_kept", [0, 1, 3])
def test_what_is_kept_stays_within_half_of_the_memory(sites_kept: int, tmp_path: Path, made: list[int]) -> None:
    write_adapters(tmp_path, 3, where=sites(6, {"q_proj": (64, 64)}))
    recipe = recipe_of(tmp_path, merge_method="tsv_m")
    one = 4 * 12 * 12 * 8  # two triangular factors and two small matrices of 12 columns, float64
    memory = 2 * (sites_kept * one + one // 2)
    trial = vary(recipe, TRIALS[1])
    merges = Merges(recipe, Resources(workers=2, memory=memory))
    assert (merges.cores.limit, merges.resources.memory) == (memory // 2, memory // 2)
    first, second = weights_of(merges, trial, tmp_path / "out"), weights_of(merges, trial, tmp_path / "out")
    merges.close()
    assert first == second
    assert merges.cores.nbytes == sites_kept * one
    assert len(made) == 6 + 6 - sites_kept


def test_trials_side_by_side_share_them_too(tmp_path: Path) -> None:
    write_adapters(tmp_path, 3, where=sites(5))
    recipe = recipe_of(tmp_path, merge_method="ties", space="core", parameters={"density": 0.5})
    trials = trials_of(recipe)
    expected, once = written(recipe, trials, tmp_path / "out")
    merges = Merges(recipe, Resources(workers=2))
    found: dict[int, list[bytes]] = {i: [] for i in range(len(trials))}

    def work(i: int) -> None:
        for _ in range(2):
            found[i].append(weights_of(merges, trials[i], tmp_path / f"out{i}"))

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    merges.close()
    assert found == {i: [expected[i]] * 2 for i in found}
    assert merges.cores.nbytes == once.cores.nbytes

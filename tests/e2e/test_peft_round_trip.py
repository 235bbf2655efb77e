"""Adapters written by PEFT, merged, loaded by PEFT: the forward pass equals a merge computed here in float64."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_models import EVERY, Trained, forward_loaded, forward_with, mixed, plain, train
from small_adapters import entry, run, write_recipe
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")

CASES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "plain": (plain, [{}, {}]),
    "three": (plain, [{}, {}, {}]),
    "rslora": (plain, [{"use_rslora": True}, {"use_rslora": True, "r": 4, "lora_alpha": 3}]),
    "mixed scales": (plain, [{"use_rslora": True}, {"lora_alpha": 1}]),
    "patterns": (
        plain,
        [
            {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 9}},
            {"rank_pattern": {"^v_proj": 3}, "alpha_pattern": {"q_proj": 2, "v_proj": 5}},
        ],
    ),
    "mixed ranks": (plain, [{"r": 2}, {"r": 5}, {"r": 3}]),
    "every kind": (mixed, [{"target_modules": EVERY}, {"target_modules": EVERY}]),
    "every kind, rslora and ranks": (mixed, [{"target_modules": EVERY, "use_rslora": True}, {"target_modules": EVERY, "r": 2}]),
    "fan_in_fan_out": (
        mixed,
        [{"target_modules": ["c_attn"], "fan_in_fan_out": True}, {"target_modules": ["c_attn"], "fan_in_fan_out": True}],
    ),
    "heads": (plain, [{"modules_to_save": ["head"]}, {"modules_to_save": ["head"]}]),
}
"""Case -> model and the settings of every adapter."""


def make_case(name: str, place: Path) -> tuple[Any, list[Trained]]:
    make, settings = CASES[name]
    return make, [train(make, place / f"t{i}", i + 1, **each) for i, each in enumerate(settings)]


# --- the methods, from their definitions ------------------------------------------------------------------------------


def weighted_sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return sum((w * d for w, d in zip(weights, parts, strict=True)), torch.zeros_like(parts[0]))


def kept(x: Tensor, density: float) -> Tensor:
    k = int(x.numel() * (1 - density))
    if k == 0:
        return x
    threshold = sorted(x.abs().flatten().tolist())[k - 1]
    return torch.where(x.abs() >= threshold, x, 0.0)


def robust(site: str, adapters: Sequence[Trained], weights: Sequence[float], variant: str) -> Tensor:
    """RobustMerge at density 0.5 and gain 1.5, one adapter and one row at a time."""
    density, gain, quantile = 0.5, 1.5, 0.8
    rows = max(t.factors[site][2].shape[0] for t in adapters)
    pruned: list[tuple[Tensor, Tensor, list[float]]] = []
    for adapter, weight in zip(adapters, weights, strict=True):
        scale, b, a = adapter.factors[site]
        b = weight * scale * b
        a_kept, b_kept = kept(a, density), kept(b, density)
        ratio = [
            float(a[i].abs().sum() / a_kept[i].abs().sum()) if a_kept[i].abs().sum() > 0 else math.inf for i in range(len(a))
        ]
        finite = sorted(x for x in ratio if math.isfinite(x))
        ratio = [x if math.isfinite(x) else 1.0 for x in ratio]
        if variant == "official" and finite:
            low, high = finite[int(quantile * len(finite))], finite[-1]
            ratio = [min(max(x, low), high) for x in ratio]
        pruned.append((a_kept, b_kept, ratio))
    total = [sum(s[i] for _, _, s in pruned if i < len(s)) for i in range(rows)]
    a_sum = torch.zeros(rows, pruned[0][0].shape[1], dtype=torch.float64)
    b_sum = torch.zeros(pruned[0][1].shape[0], rows, dtype=torch.float64)
    exact = b_sum @ a_sum
    for a, b, s in pruned:
        r = len(s)
        scaled = b * torch.tensor([s[i] / total[i] for i in range(r)], dtype=torch.float64)
        a_sum[:r] += a
        b_sum[:, :r] += scaled
        exact += scaled @ a
    return {"official": gain**2 * b_sum @ a_sum, "paper": gain * exact, "factor_sum": gain * b_sum @ a_sum}[variant]


def best_of_rank(matrix: Tensor, k: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :k] * s[:k]) @ vt[:k]


Oracle = Callable[[str, Sequence[Trained], Sequence[float]], Tensor]


def of_deltas(combine: Callable[[list[Tensor], Sequence[float]], Tensor]) -> Oracle:
    return lambda site, adapters, weights: combine([t.delta(site) for t in adapters], weights)


def robust_recipe(variant: str) -> dict[str, Any]:
    return {"merge_method": "robustmerge", "parameters": {"variant": variant, "density": 0.5, "gain": 1.5}}


METHODS: dict[str, tuple[dict[str, Any], Oracle]] = {
    "linear": ({"merge_method": "linear"}, of_deltas(lambda d, w: weighted_sum(d, w) / sum(w))),
    "task_arithmetic": (
        {"merge_method": "task_arithmetic", "parameters": {"gain": 0.7}},
        of_deltas(lambda d, w: 0.7 * weighted_sum(d, w)),
    ),
    "cat": ({"merge_method": "cat"}, of_deltas(weighted_sum)),
    "svd": ({"merge_method": "svd", "output": {"rank": 3}}, of_deltas(lambda d, w: best_of_rank(weighted_sum(d, w), 3))),
    **{
        f"robustmerge {variant}": (
            robust_recipe(variant),
            lambda site, adapters, weights, variant=variant: robust(site, adapters, weights, variant),
        )
        for variant in ("official", "paper", "factor_sum")
    },
}
WEIGHTS = (1.0, 0.5, -0.25)


@pytest.mark.parametrize("case", CASES)
def test_forward_pass_of_the_merge_is_the_one_computed_in_float64(case: str, tmp_path: Path) -> None:
    make, adapters = make_case(case, tmp_path)
    weights = WEIGHTS[: len(adapters)]
    heads = {
        name: sum(w * t.saved[name] for w, t in zip(weights, adapters, strict=True)) / sum(weights)
        for name in adapters[0].saved
    }
    for method, (settings, oracle) in METHODS.items():
        recipe = write_recipe(
            tmp_path,
            [entry(t.folder, w) for t, w in zip(adapters, weights, strict=True)],
            **{"method": settings["merge_method"], "extras": "mean" if heads else "error"},
            **{key: value for key, value in settings.items() if key != "merge_method"},
        )
        run(recipe, tmp_path / "out", overwrite=True)
        expected = forward_with(make, {site: oracle(site, adapters, weights) for site in adapters[0].factors}, heads)
        base = forward_with(make, {}, {})
        found = forward_loaded(make, tmp_path / "out")
        assert float((found - expected).abs().max() / (expected - base).abs().max()) < 2e-6, method


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["linear", "cat", "svd"])
def test_one_adapter_at_weight_1_keeps_its_delta(case: str, method: str, tmp_path: Path) -> None:
    make, settings = CASES[case]
    adapter = train(make, tmp_path / "one", 5, **settings[0])
    rank = {"output": {"rank": 9}} if method == "svd" else {}
    run(write_recipe(tmp_path, [adapter.folder], method, **rank), tmp_path / "out")
    expected = forward_with(make, {site: adapter.delta(site) for site in adapter.factors}, adapter.saved)
    base = forward_with(make, {}, {})
    found = forward_loaded(make, tmp_path / "out")
    assert float((found - expected).abs().max() / (expected - base).abs().max()) < 1e-6


@pytest.mark.parametrize("missing", ["zero", "renormalize"])
@pytest.mark.parametrize(("method", "divides"), [("linear", True), ("task_arithmetic", False)])
def test_sites_that_only_some_adapters_have(missing: str, method: str, divides: bool, tmp_path: Path) -> None:
    targets = (["q_proj", "v_proj"], ["q_proj"], ["v_proj"])
    adapters = [train(plain, tmp_path / f"t{i}", i, target_modules=each) for i, each in enumerate(targets)]
    weights = (1.0, 0.5, 2.0)
    entries = [entry(t.folder, w) for t, w in zip(adapters, weights, strict=True)]
    run(write_recipe(tmp_path, entries, method, missing=missing), tmp_path / "out")
    deltas: dict[str, Tensor] = {}
    for site in ("q_proj", "v_proj"):
        having = [(t.delta(site), w) for t, w in zip(adapters, weights, strict=True) if site in t.factors]
        counted = sum(weights) if missing == "zero" else sum(w for _, w in having)
        deltas[site] = weighted_sum([d for d, _ in having], [w for _, w in having]) / (counted if divides else 1.0)
    expected = forward_with(plain, deltas, {})
    assert float((forward_loaded(plain, tmp_path / "out") - expected).abs().max()) < 1e-6


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 1e-2), ("float16", 2e-3)])
def test_output_dtypes_are_written_and_their_rounding_is_reported(dtype: str, bound: float, tmp_path: Path) -> None:
    _, adapters = make_case("plain", tmp_path)
    recipe = write_recipe(tmp_path, [t.folder for t in adapters], "cat", output={"dtype": dtype})
    receipt = run(recipe, tmp_path / "out")
    expected = forward_with(plain, {s: sum(t.delta(s) for t in adapters) for s in ("q_proj", "v_proj")}, {})  # type: ignore[misc]
    found = forward_loaded(plain, tmp_path / "out")
    base = forward_with(plain, {}, {})
    relative = float((found - expected).abs().max() / (expected - base).abs().max())
    assert relative < bound
    if dtype != "float32":
        assert relative > bound / 1000
        assert 0.1 * relative < receipt.content["totals"]["rounding_error"] < bound
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {f"torch.{dtype}"}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}


def test_unequal_output_ranks_are_what_peft_loads(tmp_path: Path) -> None:
    make, adapters = make_case("every kind", tmp_path)
    output = {"rank": {"budget": {"average": 2.5}}, "uniform": False, "for": "peft"}
    receipt = run(write_recipe(tmp_path, [t.folder for t in adapters], "task_arithmetic", output=output), tmp_path / "out")
    ranks = {site["site"]: site["rank"] for site in receipt.content["sites"]}
    assert len(set(ranks.values())) > 1
    deltas = {s: best_of_rank(weighted_sum([t.delta(s) for t in adapters], [1, 1]), k) for s, k in ranks.items()}
    found, expected = forward_loaded(make, tmp_path / "out"), forward_with(make, deltas, {})
    assert float((found - expected).abs().max() / (expected - forward_with(make, {}, {})).abs().max()) < 2e-6


def test_config_is_the_safe_profile(tmp_path: Path) -> None:
    _, adapters = make_case("patterns", tmp_path)
    run(write_recipe(tmp_path, [t.folder for t in adapters], "cat"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    expected = {
        "r": 7,
        "lora_alpha": 7,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "modules_to_save": None,
        "target_modules": ["q_proj", "v_proj"],
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "inference_mode": True,
        "peft_type": "LORA",
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("kind", ["all", "lora_only"])
def test_biases_are_where_peft_looks_for_them(kind: Any, tmp_path: Path) -> None:
    import peft

    base, x = plain()
    adapted: Any = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], bias=kind))
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.copy_(torch.randn(value.shape))
        wanted = adapted.double().eval()(x.double())
    adapted.float().save_pretrained(tmp_path / "a")
    run(write_recipe(tmp_path, [tmp_path / "a"]), tmp_path / "out")
    torch.testing.assert_close(forward_loaded(plain, tmp_path / "out"), wanted, rtol=0, atol=1e-6)

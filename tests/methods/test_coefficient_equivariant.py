"""Every coefficient and equivariant method against its dense oracle, the golden vectors and values computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import stacks
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from robustmerge_kit import factors, transforms
from robustmerge_kit.errors import InputError
from robustmerge_kit.factors import FactorStack, Weights, core, decompose, gram
from robustmerge_kit.methods import dc_merge, iso, karcher, linear, model_stock, slerp, star, tsv, wudi
from robustmerge_kit.verify import oracles

GOLDEN = Path(__file__).parents[1] / "golden"
METHODS = {
    method.name: method for module in (slerp, karcher, model_stock, tsv, iso, wudi, dc_merge, star) for method in module.METHODS
}
VARIANTS = [
    ("nuslerp", {}),
    ("slerp", {"t": 0.3}),
    ("slerp", {"t": 1.0}),
    ("multislerp", {}),
    ("multislerp", {"normalize_weights": False}),
    ("karcher", {}),
    ("karcher", {"max_iter": 2}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True}),
    ("tsv_m", {}),
    ("tsv_m", {"rank_per_adapter": 2, "gain": 0.7}),
    ("iso_c", {}),
    ("iso_c", {"mean_over": "full", "gain": 3.0}),
    ("iso_cts", {}),
    ("iso_cts", {"common_fraction": 0.5}),
    ("iso_cts", {"common_fraction": 0.0}),
    ("iso_cts", {"rank": 9, "directions_per_adapter": 1}),
    ("wudi", {}),
    ("wudi", {"gain": 0.5}),
    ("swudi", {}),
    ("swudi", {"filter": "none", "init": "zero", "keep_fraction": 1.0}),
    ("swudi", {"exp_time": 3.0, "init": "mean", "keep_fraction": 0.85, "gain": 0.3}),
    ("swudi", {"adaptive": True, "init": "mean"}),
    ("dc_merge", {"smoothing": "linear", "keep_fraction": 0.2}),
    ("dc_merge", {"smoothing": "linear", "rho": 2.0, "keep_per_adapter": "r", "gain": 2.0}),
    ("dc_merge", {"keep_per_adapter": 10_000}),
    ("star", {}),
    ("star", {"eta": 90.0, "gain": 2.0}),
    ("star", {"eta": 100.0}),
]


SIZES = {case: len(build()) for case, build in stacks.CASES.items()}


def accepted() -> list[tuple[str, dict, str]]:
    """Every variant with every stack of as many adapters as the method takes."""
    found = []
    for name, options in VARIANTS:
        least, most = METHODS[name].adapters
        found += [(name, options, case) for case, n in SIZES.items() if least <= n <= (most or n)]
    return found


def oracle(name: str, stack: FactorStack, options: dict) -> torch.Tensor:
    d = [x.numpy() for x in stacks.deltas(stack)]
    more = {"swudi": {"dim": np.linalg.matrix_rank(_rows(stack))}, "iso_cts": {"total_rank": sum(stack.ranks)}}.get(name, {})
    return torch.from_numpy(getattr(oracles, name)(d, list(stack.weights.each), **more, **options))


def _rows(stack: FactorStack) -> np.ndarray:
    rows = torch.cat([a.double() for a in stack.a]).numpy()
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(size > 0, size, 1.0)


@pytest.mark.parametrize(("name", "options", "case"), accepted(), ids=lambda x: x if isinstance(x, str) else json.dumps(x))
def test_equals_the_dense_oracle(name, options, case):
    stack = stacks.CASES[case]()
    method = METHODS[name]
    result = stacks.merged(method, stack, method.params(**options))
    limit = 1e-8 if stack.dtype == torch.float64 else 1e-5
    assert stacks.difference(result, oracle(name, stack, options)) < limit


def golden_cases() -> list[str]:
    known = {*METHODS, "task_arithmetic", "linear"}
    found = []
    for path in sorted(GOLDEN.glob("*/case.json")):
        case = json.loads(path.read_text())
        if case["method"] in known and case["kind"] in ("coefficient", "equivariant") and case["space"] is None:
            found.append(case["case"])
    return found


@pytest.mark.parametrize("name", golden_cases())
def test_golden(name):
    case = json.loads((GOLDEN / name / "case.json").read_text())
    inputs = load_file(GOLDEN / name / "inputs.safetensors")
    expected = load_file(GOLDEN / name / "expected.safetensors")
    method = {**METHODS, **{m.name: m for m in linear.METHODS}}[case["method"]]
    options = dict(case["parameters"])
    posts = options.pop("post", [])
    params = method.params.model_validate({k: v for k, v in options.items() if v is not None})
    weights = [a["weight"] for a in case["adapters"]]
    for site in case["sites"]:
        stack = FactorStack(
            tuple(inputs[f"{a['name']}.{site['name']}.lora_A"] for a in case["adapters"]),
            tuple(inputs[f"{a['name']}.{site['name']}.lora_B"] for a in case["adapters"]),
            tuple(a["weight"] * a["scale"] for a in case["adapters"]),
            Weights.of(weights),
        )
        delta = stacks.merge(method, stack, params)
        spectral = decompose(delta)
        for post in posts:
            for step, settings in post.items():
                record = transforms.find_post(step)
                spectral = record.apply(spectral, core(stack), record.params.model_validate(settings))
        rank = (case["output"] or {}).get("rank", "sum")
        cut = spectral.cut(sum(stack.ranks) if rank == "sum" else rank)
        if f"{site['name']}.delta" in expected:
            wanted = expected[f"{site['name']}.delta"].double()
        else:
            wanted = expected[f"{site['name']}.lora_B"].double() @ expected[f"{site['name']}.lora_A"].double()
        assert stacks.difference(stacks.dense(cut), wanted) <= case["tolerance"]["value"]


def hand(*m: list[list[float]]) -> factors.Core:
    return stacks.plain_core(torch.tensor(m, dtype=torch.float64))


X, Y = [[3.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("method", "options", "inputs", "wanted"),
    [
        (iso.METHODS[0], {}, (X, Y), [[2.0, 0.0], [0.0, 2.0]]),
        (iso.METHODS[0], {}, (X,), [[3.0, 0.0], [0.0, 0.0]]),
        (iso.METHODS[0], {"mean_over": "full"}, (X,), [[1.5, 0.0], [0.0, 0.0]]),
        (tsv.METHODS[0], {}, (X, Y), [[3.0, 0.0], [0.0, 1.0]]),
        # The same direction twice: U = [e e], polar [e e] / sqrt 2, and (3 + 1) / 2.
        (tsv.METHODS[0], {}, (X, [[1.0, 0.0], [0.0, 0.0]]), [[2.0, 0.0], [0.0, 0.0]]),
        (wudi.METHODS[0], {}, (X, Y), [[3.0, 0.0], [0.0, 1.0]]),
        (wudi.METHODS[0], {}, (X, [[1.0, 0.0], [0.0, 0.0]]), [[2.0, 0.0], [0.0, 0.0]]),
        (star.METHODS[0], {"eta": 100}, (X, Y), [[1.5, 0.0], [0.0, 0.5]]),
        # 3 is less than 80 % of 4, so both values stay; with 70 % only the first does, and it becomes 4.
        (star.METHODS[0], {"eta": 80}, ([[3.0, 0.0], [0.0, 1.0]],), [[3.0, 0.0], [0.0, 1.0]]),
        (star.METHODS[0], {"eta": 70}, ([[3.0, 0.0], [0.0, 1.0]],), [[4.0, 0.0], [0.0, 0.0]]),
        # Smoothed to 2 and 2, then one entry kept of four and, since both are equal, the tie too.
        (dc_merge.METHODS[0], {"keep_fraction": 0.25}, ([[3.0, 0.0], [0.0, 1.0]],), [[2.0, 0.0], [0.0, 2.0]]),
    ],
)
def test_by_hand(method, options, inputs, wanted):
    result = method.merge(hand(*inputs), Weights.of([1.0] * len(inputs)), method.params(**options))
    torch.testing.assert_close(result, torch.tensor(wanted, dtype=torch.float64))


UNIT = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "options", "products", "weights", "wanted"),
    [
        # A right angle: sin 45 degrees each.
        (slerp.SLERP, {"t": 0.5}, UNIT, Weights.of([1.0, 1.0]), [0.5**0.5, 0.5**0.5]),
        (slerp.SLERP, {"t": 0.0}, UNIT, Weights.of([1.0, 1.0]), [1.0, 0.0]),
        (slerp.SLERP, {"t": 0.25}, torch.ones(2, 2).double(), Weights.of([1.0, 1.0]), [0.75, 0.25]),
        (slerp.SLERP, {"t": 0.25}, -torch.ones(2, 2).double() + 2 * UNIT, Weights.of([1.0, 1.0]), [0.75, 0.25]),
        # The other delta is zero: a right angle, and the place tells which end this one is.
        (slerp.SLERP, {"t": 1 / 3}, UNIT[:1, :1], Weights.of([1.0], [1.0], [0]), [0.75**0.5]),
        (slerp.SLERP, {"t": 1 / 3}, UNIT[:1, :1], Weights.of([1.0], [1.0], [1]), [0.5]),
        (slerp.SLERP, {"t": 1 / 3}, UNIT[:1, :1], Weights.of([1.0]), [1.0]),
        # Unweighted deltas have norm 1 / 2 and 1; t = 1 / 3.
        (slerp.NUSLERP, {}, UNIT, Weights.of([2.0, 1.0]), [0.75**0.5 / 2, 0.5]),
        (slerp.NUSLERP, {}, UNIT[:1, :1], Weights.of([2.0], [1.0]), [0.75**0.5 / 2]),
        (slerp.NUSLERP, {}, UNIT[:1, :1], Weights.of([2.0]), [0.5]),
        (slerp.NUSLERP, {}, UNIT, Weights.of([1.0, -1.0]), [0.5**0.5, -(0.5**0.5)]),
        # The mean of two orthogonal unit vectors, stretched to length 1.
        (slerp.MULTISLERP, {}, UNIT, Weights.of([1.0, 1.0]), [0.5**0.5, 0.5**0.5]),
        (slerp.MULTISLERP, {}, -torch.ones(2, 2).double() + 2 * UNIT, Weights.of([1.0, 1.0]), [0.5, 0.5]),
        (slerp.MULTISLERP, {}, UNIT[:1, :1], Weights.of([3.0], [1.0]), [0.25]),
        (karcher.METHODS[0], {}, UNIT, Weights.of([1.0, 1.0]), [0.5**0.5, 0.5**0.5]),
        # A right angle walked for a third of the way by weight.
        (karcher.METHODS[0], {"max_iter": 200}, UNIT, Weights.of([2.0, 1.0]), [3**-0.5, 1 / 3]),
        (karcher.METHODS[0], {}, UNIT[:1, :1], Weights.of([2.0], [2.0]), [0.25]),
        (model_stock.METHODS[0], {}, UNIT, Weights.of([1.0, 1.0]), [0.0, 0.0]),
        # cos 1/2: t = 2 * .5 / 1.5.
        (model_stock.METHODS[0], {}, torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double(), Weights.of([1.0, 1.0]), [1 / 3, 1 / 3]),
        (model_stock.METHODS[0], {}, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double(), Weights.of([1.0, 1.0]), [0.0, 0.0]),
        # A third, zero adapter: the mean over three pairs is 1/6, t = .5 / (4 / 3).
        (
            model_stock.METHODS[0],
            {},
            torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double(),
            Weights.of([1.0, 1.0], [1.0]),
            [0.125, 0.125],
        ),
        (model_stock.METHODS[0], {}, UNIT[:1, :1], Weights.of([1.0], [1.0]), [0.0]),
    ],
)
def test_coefficients_by_hand(method, options, products, weights, wanted):
    result = method.merge(products, weights, method.params(**options))
    torch.testing.assert_close(result, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["karcher", "multislerp"])
def test_a_zero_delta_lowers_the_mean_length(name):
    """The oracle works with the adapters that count; the code sees only those that are not zero."""
    stack = stacks.make([3, 3, 3], weights=[1.0, 2.0, 1.0])
    method = METHODS[name]
    whole = stacks.merged(method, stack, method.params())
    fewer = stacks.replace(stack, weights=Weights.of(stack.weights.each, [4.0]))
    assert stacks.difference(stacks.merged(method, fewer, method.params()), whole / 2) < 1e-6


def test_star_divides_by_all_adapters_that_count():
    stack = stacks.make([3, 3])
    fewer = stacks.replace(stack, weights=Weights.of([1.0, 1.0], [1.0, 1.0]))
    whole = stacks.merged(METHODS["star"], stack, star.Star())
    assert stacks.difference(stacks.merged(METHODS["star"], fewer, star.Star()), whole / 2) < 1e-6


def test_karcher_does_not_follow_an_opposite_direction():
    one, noise = stacks.make([3], dtype=torch.float64), stacks.make([3], dtype=torch.float64, seed=1)
    nearly = -one.b[0] + 1e-7 * noise.b[0]
    opposite = stacks.replaced(stacks.make([3] * 3), [one.a[0]] * 3, [one.b[0], nearly, one.b[0]])
    result = stacks.merged(METHODS["karcher"], opposite, karcher.Karcher())
    assert stacks.difference(result, stacks.deltas(one)[0]) < 1e-6


def test_multislerp_refuses_directions_that_cancel():
    stack = stacks.make([3, 3, 3, 3])
    stack = stacks.replaced(stack, [stack.a[0]] * 2 + [stack.a[1]] * 2, [stack.b[0], -stack.b[0], stack.b[1], -stack.b[1]])
    with pytest.raises(InputError, match="cancel"):
        slerp.merge_multislerp(gram(stack), stack.weights, slerp.MultiSlerp())


@pytest.mark.parametrize(
    ("name", "options", "weights", "says"),
    [
        ("slerp", {"t": 0.5}, [1.0, 0.0], "two adapters"),
        ("slerp", {"t": 0.5}, [1.0, -1.0], None),
        ("multislerp", {}, [1.0, -1.0], "sum to zero"),
        ("multislerp", {"normalize_weights": False}, [1.0, -1.0], None),
        ("karcher", {}, [0.5, 0.5, -1.0], "sum to zero"),
        ("karcher", {}, [0.5, 0.5, -0.9], None),
        ("model_stock", {}, [1.0, 0.0], "needs two"),
        ("iso_cts", {"rank": 4, "directions_per_adapter": 2}, [1.0, 1.0], "no common direction"),
        ("iso_cts", {"rank": 5, "directions_per_adapter": 2}, [1.0, 1.0], None),
        ("iso_cts", {"rank": 5, "directions_per_adapter": 2}, [1.0, 0.0, 1.0], None),
        ("iso_cts", {"rank": 8, "common_fraction": 0.0}, [1.0, 1.0], "no common direction"),
        ("iso_cts", {"directions_per_adapter": 2}, [1.0, 1.0], None),
    ],
)
def test_plan_time_checks(name, options, weights, says):
    method = METHODS[name]
    answer = method.check(method.params(**options), weights)
    assert answer is None if says is None else says in str(answer)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slerp", {}),
        ("slerp", {"t": 1.1}),
        ("nuslerp", {"t": 0.5}),
        ("karcher", {"tol": 0}),
        ("karcher", {"max_iter": -1}),
        ("tsv_m", {"rank_per_adapter": 0}),
        ("iso_c", {"mean_over": "all"}),
        ("iso_cts", {"common_fraction": 1.1}),
        ("iso_cts", {"rank": 0}),
        ("swudi", {"keep_fraction": 0}),
        ("swudi", {"exp_time": 0}),
        ("dc_merge", {"rho": 0.5}),
        ("dc_merge", {"keep_per_adapter": 0}),
        ("dc_merge", {"keep_per_adapter": "R"}),
        ("star", {"eta": 0}),
        ("star", {"eta": 101}),
    ],
)
def test_parameters_out_of_range(name, options):
    with pytest.raises(ValidationError):
        METHODS[name].params(**options)


@pytest.mark.parametrize("gauge", [0.1, 0.5, 0.95])
def test_iso_cts_leaves_one_common_direction_when_the_sum_is_too_small(gauge):
    stack = stacks.make([1])
    result = stacks.merged(METHODS["iso_cts"], stack, iso.IsoCTS(common_fraction=gauge))
    assert stacks.difference(result, stacks.deltas(stack)[0]) < 1e-6

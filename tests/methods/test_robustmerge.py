"""RobustMerge against the published vectors, a loop oracle written from the paper's formulas, and hand-computed cases."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.factors import FactorStack, Weights
from robustmerge_kit.methods import find

GOLDEN = Path(__file__).parent.parent / "golden"
METHOD = find("robustmerge")


def stack_of(a, b, coefficients=None, weights=None):
    n = len(a)
    return FactorStack(tuple(a), tuple(b), tuple(coefficients or [1.0] * n), Weights.of(weights or [1.0] * n))


def merged(a, b, coefficients=None, **settings):
    stack = stack_of(a, b, coefficients)
    draws = KeyedDraws.of(0, "site", [f"adapter {t}" for t in range(len(a))])
    return METHOD.merge(stack, METHOD.params(**settings), draws)


def delta(low_rank):
    return low_rank.b.double() @ low_rank.a.double()


def error(got, expected):
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def adapters(n, ranks=8, d_out=20, d_in=24, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    ranks = [ranks] * n if isinstance(ranks, int) else ranks
    a = [((torch.rand(r, d_in, generator=g) * 2 - 1) / math.sqrt(d_in)).to(dtype) for r in ranks]
    b = [(torch.randn(d_out, r, generator=g) * 0.02).to(dtype) for r in ranks]
    return a, b


# --- golden vectors ---------------------------------------------------------------------------------------------------

CASES = sorted(path.parent.name for path in GOLDEN.glob("robustmerge*/case.json"))


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    case = json.loads((GOLDEN / name / "case.json").read_text())
    inputs = load_file(GOLDEN / name / "inputs.safetensors")
    expected = load_file(GOLDEN / name / "expected.safetensors")
    entries = case["adapters"]
    for site in (s["name"] for s in case["sites"]):
        a = [inputs[f"{e['name']}.{site}.lora_A"] for e in entries]
        b = [inputs[f"{e['name']}.{site}.lora_B"] for e in entries]
        got = merged(a, b, [e["weight"] * e["scale"] for e in entries], **case["parameters"])
        if f"{site}.lora_A" in expected:
            want_b, want_a = expected[f"{site}.lora_B"].double(), expected[f"{site}.lora_A"].double()
            assert error(got.a, want_a) < 1e-6
            assert error(got.b, want_b) < 1e-6
            want = want_b @ want_a
        else:
            want = expected[f"{site}.delta"]
        assert error(delta(got), want) < min(1e-6, case["tolerance"]["value"])


def test_golden_cases_are_all_there():
    assert len(CASES) == 11


# --- the formulas again, entry by entry in float64 --------------------------------------------------------------------


def oracle(a, b, coefficients, variant, density, gain, clamp, quantile, normalize, prune, scaling):
    """METHODS 3.1 to 3.3 as loops; matrices as lists of lists."""
    a = [x.double().tolist() for x in a]
    b = [x.double().tolist() for x in b]

    def pruned(x):
        flat = sorted(abs(v) for row in x for v in row)
        k = int(len(flat) * (1 - density))
        if k == 0 or not prune:
            return x
        return [[v if abs(v) >= flat[k - 1] else 0.0 for v in row] for row in x]

    def columns(x):
        return [list(column) for column in zip(*x, strict=True)]

    def losses(full, kept):
        sums = [(sum(map(abs, f)), sum(map(abs, k))) for f, k in zip(full, kept, strict=True)]
        return [f / k if k > 0 else None for f, k in sums]

    def clamped(scale):
        if not clamp:
            return [1.0 if s is None else s for s in scale]
        finite = sorted(s for s in scale if s is not None)
        if not finite:
            return [1.0] * len(scale)
        low, high = finite[int(quantile * len(finite))], finite[-1]
        return [min(max(1.0 if s is None else s, low), high) for s in scale]

    def settled(all_losses):
        scales = [clamped(loss) for loss in all_losses]
        if not normalize:
            return scales
        longest = max(map(len, scales))
        totals = [sum(s[i] for s in scales if i < len(s)) for i in range(longest)]
        return [[v / totals[i] for i, v in enumerate(s)] for s in scales]

    a_kept, b_kept = [pruned(x) for x in a], [pruned(x) for x in b]
    ranks = [[1.0] * len(x) for x in a]
    if scaling == "inter":
        ranks = settled([losses(x, k) for x, k in zip(a, a_kept, strict=True)])
    elif scaling == "none":
        ranks = settled([[1.0] * len(x) for x in a])
    if scaling in ("A", "A+B"):
        scale = settled([losses(columns(x), columns(k)) for x, k in zip(a, a_kept, strict=True)])
        a_kept = [[[v * s[j] for j, v in enumerate(row)] for row in x] for x, s in zip(a_kept, scale, strict=True)]
    if scaling in ("B", "A+B"):
        scale = settled([losses(x, k) for x, k in zip(b, b_kept, strict=True)])
        b_kept = [[[v * s[i] for v in row] for i, row in enumerate(x)] for x, s in zip(b_kept, scale, strict=True)]
    b_kept = [
        [[v * c * s[j] for j, v in enumerate(row)] for row in x] for x, c, s in zip(b_kept, coefficients, ranks, strict=True)
    ]
    a_t = [torch.tensor(x, dtype=torch.float64) for x in a_kept]
    b_t = [torch.tensor(x, dtype=torch.float64) for x in b_kept]
    if variant == "paper":
        return gain * sum(y @ x for x, y in zip(a_t, b_t, strict=True))
    r = max(x.shape[0] for x in a_t)
    a_sum = sum(torch.nn.functional.pad(x, (0, 0, 0, r - x.shape[0])) for x in a_t)
    b_sum = sum(torch.nn.functional.pad(y, (0, r - y.shape[1])) for y in b_t)
    return (gain**2 if variant == "official" else gain) * b_sum @ a_sum


SETTINGS = [
    dict(variant=v, density=d, gain=g, clamp=c, clamp_quantile=q, normalize=n, prune=p, scaling=s)
    for v in ("official", "paper", "factor_sum")
    for d, g, c, q, n, p, s in [
        (0.2, 2.0, True, 0.8, True, True, "inter"),
        (0.5, 1.0, False, 0.8, True, True, "inter"),
        (0.35, 0.7, True, 0.3, False, True, "inter"),
        (0.2, 2.0, True, 0.8, True, True, "none"),
        (0.3, 2.0, True, 0.6, True, True, "A"),
        (0.3, 1.5, False, 0.8, True, True, "B"),
        (0.4, 1.0, True, 0.8, False, True, "A+B"),
        (0.2, 2.0, True, 0.8, True, False, "inter"),
        (1.0, 1.0, True, 0.0, True, True, "inter"),
    ]
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("ranks", [[4, 4, 4], [2, 7, 5, 1], [16]], ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s['variant']}-{s['scaling']}-{s['density']}")
def test_equals_the_loop_oracle(settings, ranks, dtype):
    a, b = adapters(len(ranks), ranks, seed=len(ranks), dtype=dtype)
    coefficients = [2.0, -0.7, 1.3, 0.25][: len(ranks)]
    want = oracle(a, b, coefficients, **{"quantile" if k == "clamp_quantile" else k: v for k, v in settings.items()})
    got = merged(a, b, coefficients, **settings)
    assert error(delta(got), want) < (1e-12 if dtype == torch.float64 else 1e-6)
    assert got.a.dtype == got.b.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.rank == METHOD.rank(ranks, METHOD.params(**settings))


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[10], SETTINGS[4]], ids=["official", "paper", "A"])
def test_batch_equals_one_by_one(settings):
    singles = [adapters(3, [4, 6, 4], seed=seed) for seed in range(4)]
    a = [torch.stack([single[0][t] for single in singles]) for t in range(3)]
    b = [torch.stack([single[1][t] for single in singles]) for t in range(3)]
    batched = merged(a, b, [2.0, 1.0, 0.5], **settings)
    for i, (a_i, b_i) in enumerate(singles):
        one = merged(a_i, b_i, [2.0, 1.0, 0.5], **settings)
        torch.testing.assert_close(batched.a[i], one.a, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(batched.b[i], one.b, rtol=1e-6, atol=1e-9)


def test_inputs_are_left_alone():
    a, b = adapters(3)
    before = [x.clone() for x in (*a, *b)]
    merged(a, b, [1.0, -1.0, 2.0])
    assert all(torch.equal(x, y) for x, y in zip((*a, *b), before, strict=True))


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_two_by_two_by_hand():
    """density 0.5: k = 2 of 4, so entries of at least the second smallest magnitude stay, three of four."""
    a = [torch.tensor([[4.0, 1.0], [2.0, 3.0]])]
    b = [torch.tensor([[1.0, 5.0], [2.0, 4.0]])]
    got = merged(a, b, variant="paper", density=0.5, gain=1.0, normalize=False)
    assert torch.equal(got.a, torch.tensor([[4.0, 0.0], [2.0, 3.0]]))
    # S = (5/4, 5/5)
    assert torch.allclose(got.b, torch.tensor([[0.0, 5.0], [2.0 * 1.25, 4.0]]))


@pytest.mark.parametrize("variant", ["official", "paper", "factor_sum"])
def test_identity_at_density_one_and_gain_one(variant):
    a, b = adapters(1)
    got = merged(a, b, [1.7], variant=variant, density=1.0, gain=1.0)
    assert error(delta(got), 1.7 * b[0].double() @ a[0].double()) < 1e-6


@pytest.mark.parametrize(
    ("variant", "degree"), [("official", 2), ("paper", 1), ("factor_sum", 1)], ids=["official", "paper", "factor_sum"]
)
def test_degree_of_gain(variant, degree):
    a, b = adapters(3)
    one = delta(merged(a, b, variant=variant, gain=1.0))
    assert error(delta(merged(a, b, variant=variant, gain=3.0)), one * 3.0**degree) < 1e-6


def test_clamp_defaults_follow_the_variant():
    assert METHOD.params(variant="official").clamp is True
    assert METHOD.params(variant="paper").clamp is False
    assert METHOD.params(variant="factor_sum", clamp=True).clamp is True


# --- where the released code gives inf or NaN -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["official", "paper", "factor_sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weakness", [0.0, 1e-6])
def test_weak_rows_stay_finite(variant, dtype, weakness):
    a, b = adapters(3, 16, dtype=dtype)
    for x in a:
        x[3] *= weakness
        x[11] *= weakness
    got = merged(a, b, variant=variant)
    assert got.a.isfinite().all()
    assert got.b.isfinite().all()


def test_one_weak_row_leaves_the_other_columns_as_they_are():
    a, b = adapters(3, 16)
    weak = [x.clone() for x in a]
    weak[0][5] *= 1e-6
    # The released formula on the other rows: the weak row's infinite S does not enter their quantile.
    got = merged(weak, b, density=0.2, clamp=False, normalize=False, variant="paper", gain=1.0)
    plain = merged(a, b, density=0.2, clamp=False, normalize=False, variant="paper", gain=1.0)
    others = [i for i in range(16) if i != 5]
    assert torch.isfinite(got.b).all()
    kept = (got.a[:16][others] != 0) == (plain.a[:16][others] != 0)
    assert kept.float().mean() > 0.9


def test_all_rows_weak_means_scale_one():
    a, b = adapters(2, 4)
    a[0].zero_()
    a[0][0, 0] = 1.0
    got = merged(a, b, variant="paper", density=0.01, gain=1.0, normalize=False)
    assert got.b.isfinite().all()


def test_a_matrix_of_mostly_zeros_is_kept_whole():
    x = torch.zeros(4, 10)
    x[0, 0], x[1, 1] = 1.0, 2.0
    got = merged([x], [torch.ones(6, 4)], variant="paper", density=0.2, gain=1.0)
    assert torch.equal(got.a, x)


# --- pruning criteria -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "random", "sign"])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_every_criterion_keeps_the_same_number(criterion, density):
    a, b = adapters(4, 8)
    got = merged(a, b, variant="paper", density=density, criterion=criterion)
    per_adapter = got.a.reshape(4, 8, -1).count_nonzero(dim=(1, 2))
    assert per_adapter.tolist() == [8 * 24 - int(8 * 24 * (1 - density)) + 1] * 4


def test_sign_criterion_prefers_entries_that_agree():
    a = [torch.tensor([[1.0, -9.0, 2.0, 3.0]]), torch.tensor([[1.0, 20.0, 2.0, -3.5]])]
    b = [torch.ones(2, 1), torch.ones(2, 1)]
    got = merged(a, b, variant="paper", density=0.5, gain=1.0, criterion="sign")
    # Sums are 2, 11, 4, -0.5: adapter 0 disagrees in columns 1 and 3, and fills its third place with the larger of them.
    assert (got.a[0] != 0).tolist() == [True, True, True, False]
    assert (got.a[1] != 0).tolist() == [False, True, True, True]


def test_random_criterion_is_keyed_by_adapter_not_by_place():
    a, b = adapters(3, 8)
    params = METHOD.params(variant="paper", criterion="random")

    def run(order, seed=0):
        stack = stack_of([a[i] for i in order], [b[i] for i in order])
        return delta(METHOD.merge(stack, params, KeyedDraws.of(seed, "site", [f"adapter {i}" for i in order])))

    assert error(run([2, 0, 1]), run([0, 1, 2])) < 1e-6
    assert error(run([0, 1, 2], seed=1), run([0, 1, 2])) > 0.1


def test_density_may_differ_by_adapter():
    a, b = adapters(2, 4)
    got = merged(a, b, variant="paper", density=(0.25, 1.0))
    assert got.a[4:].count_nonzero() == 4 * 24
    assert got.a[:4].count_nonzero() == 4 * 24 - int(4 * 24 * 0.75) + 1

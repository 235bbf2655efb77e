"""Laws every coefficient and equivariant method obeys; what is exempt stands in a table with its reason."""

import itertools

import pytest
import stacks
import torch
from plugged import PLUGGED

from robustmerge_kit import methods
from robustmerge_kit.factors import FactorStack, Weights, decompose
from robustmerge_kit.method import Coefficient, Equivariant, Method

SETTINGS = {
    "slerp": {"t": 0.3},
    "iso_cts": {"common_fraction": 0.6},
    "dc_merge": {"keep_per_adapter": "r", "smoothing": "linear"},
}
"""Parameters where the defaults are incomplete, or too coarse for small stacks to show anything."""

METHODS = [method for method in (*methods.BUILTIN, *PLUGGED) if isinstance(method, Coefficient | Equivariant)]

EXEMPT = {
    ("identity", "iso_c"): "replaces the spectrum by a flat one",
    ("identity", "iso_cts"): "replaces the spectrum by a flat one",
    ("identity", "dc_merge"): "smooths the spectrum and keeps a fixed number of entries",
    ("identity", "star"): "truncates and restores the nuclear norm unless eta is 100",
    ("identity", "slerp"): "needs two adapters",
    ("identity", "nuslerp"): "needs two adapters",
    ("identity", "model_stock"): "needs two adapters",
    ("permutation", "slerp"): "t counts from the first adapter: swapping means 1 - t",
    ("negation", "linear"): "divides by the sum of weights and is invariant",
    ("negation", "nuslerp"): "uses relative weights of deltas without their weights and is invariant",
    ("negation", "multislerp"): "uses relative weights of deltas without their weights and is invariant",
    ("negation", "karcher"): "uses relative weights of deltas without their weights and is invariant",
}

every = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def run(method: Method, stack: FactorStack) -> torch.Tensor:
    return stacks.merged(method, stack, method.params(**SETTINGS.get(method.name, {})))


def numbers(method: Method) -> range:
    least, most = method.adapters
    return range(least, (most or 8) + 1)


def stack_for(method: Method, **options: object) -> FactorStack:
    """Adapters of unequal rank, scale and weight, as many as the method takes but at most three."""
    n = min(3, method.adapters[1] or 3)
    kind = {"weights": [1.0, 0.7, 1.4][:n], "scales": [2.0, 1.0, 0.5][:n], **options}
    return stacks.make([4, 3, 5][:n], **kind)  # type: ignore[arg-type]


def exempt(law: str, method: Method) -> None:
    if reason := EXEMPT.get((law, method.name)):
        pytest.skip(reason)


def test_the_table_of_exemptions_names_existing_methods():
    assert {name for _, name in EXEMPT} <= {method.name for method in METHODS}


@every
def test_identity(method):
    exempt("identity", method)
    stack = stacks.make([5])
    assert stacks.difference(run(method, stack), stacks.deltas(stack)[0]) < 1e-5


def test_the_exemption_of_star_ends_at_eta_100():
    stack, star = stacks.make([5]), methods.find("star")
    assert stacks.difference(stacks.merged(star, stack, star.params(eta=100)), stacks.deltas(stack)[0]) < 1e-5


@every
def test_permutation(method):
    exempt("permutation", method)
    stack = stack_for(method)
    order = list(reversed(range(len(stack))))
    turned = FactorStack(
        tuple(stack.a[t] for t in order),
        tuple(stack.b[t] for t in order),
        tuple(stack.coefficients[t] for t in order),
        Weights.of([stack.weights.each[t] for t in order]),
    )
    assert stacks.difference(run(method, turned), run(method, stack)) < 1e-6


def test_slerp_from_the_other_end():
    stack, slerp = stacks.make([4, 3]), methods.find("slerp")
    turned = FactorStack(stack.a[::-1], stack.b[::-1], stack.coefficients[::-1], Weights.of([1.0, 1.0]))
    result = stacks.merged(slerp, turned, slerp.params(t=0.7))
    assert stacks.difference(result, stacks.merged(slerp, stack, slerp.params(t=0.3))) < 1e-6


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_finite_for_every_number_of_adapters(method, dtype):
    for n in numbers(method):
        assert run(method, stacks.make([3] * n, 24, 20, dtype=dtype, seed=n)).isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weak_rows_and_vanishing_products_stay_finite(method, dtype):
    """A row 1e-6 of the others, a zero row, and an adapter whose factors are not zero but whose delta is."""
    stack = stack_for(method, dtype=dtype)
    a, b = [x.clone() for x in stack.a], [x.clone() for x in stack.b]
    a[0][0] *= 1e-6
    a[0][1] = 0
    b[1][:, 1] = 0
    assert run(method, stacks.replaced(stack, a, b)).isfinite().all()
    a[1][0] = 0
    a[1][2] = 0
    assert not (b[1] @ a[1]).any()
    assert run(method, stacks.replaced(stack, a, b)).isfinite().all()
    empty = stacks.replaced(stack, [torch.zeros_like(x) for x in a])
    assert not run(method, empty).any()


@every
def test_zero_padding_and_folding_by_hand_change_nothing(method):
    stack = stack_for(method)
    wide = max(stack.ranks)
    a = [torch.nn.functional.pad(x, (0, 0, 0, wide - r)) for x, r in zip(stack.a, stack.ranks, strict=True)]
    b = [
        torch.nn.functional.pad(x * c, (0, wide - r)) for x, c, r in zip(stack.b, stack.coefficients, stack.ranks, strict=True)
    ]
    padded = FactorStack(tuple(a), tuple(b), (1.0,) * len(stack), stack.weights)
    assert stacks.difference(run(method, padded), run(method, stack)) < 1e-5


@every
def test_rounding_of_shared_factors_opens_no_directions(method):
    """Copies of one adapter whose scale was folded in float32 are still copies: ranks are judged at float32 precision."""
    n = min(4, method.adapters[1] or 4)
    stack = stacks.duplicates(n)
    folded = [b * c for b, c in zip(stack.b, stack.coefficients, strict=True)]
    by_hand = FactorStack(stack.a, tuple(folded), (1.0,) * n, stack.weights)
    assert stacks.difference(run(method, by_hand), run(method, stack)) < 1e-4


@every
def test_the_split_between_a_and_b_does_not_matter(method):
    stack = stack_for(method)
    draw = torch.Generator().manual_seed(11)
    gauge = [torch.eye(r, dtype=torch.float64) + 0.3 * torch.randn(r, r, generator=draw).double() for r in stack.ranks]
    a = [(g @ x.double()).float() for g, x in zip(gauge, stack.a, strict=True)]
    b = [(x.double() @ torch.linalg.inv(g)).float() for g, x in zip(gauge, stack.b, strict=True)]
    assert stacks.difference(run(method, stacks.replaced(stack, a, b)), run(method, stack)) < 1e-4


@every
def test_a_common_scalar_on_a_and_its_inverse_on_b(method):
    stack = stack_for(method)
    for c in (1e-3, 1e3):
        other = stacks.replaced(stack, [stack.a[0] * c, *stack.a[1:]], [stack.b[0] / c, *stack.b[1:]])
        assert stacks.difference(run(method, other), run(method, stack)) < 1e-5


@every
def test_negating_all_weights(method):
    stack = stack_for(method)
    negative = FactorStack(
        stack.a, stack.b, tuple(-c for c in stack.coefficients), Weights.of([-w for w in stack.weights.each])
    )
    invariant = ("negation", method.name) in EXEMPT
    assert stacks.difference(run(method, negative), run(method, stack) * (1 if invariant else -1)) < 1e-6


@every
def test_one_negative_weight_is_finite(method):
    stack = stack_for(method, weights=[1.0, -0.4, 0.8][: min(3, method.adapters[1] or 3)])
    assert run(method, stack).isfinite().all()


@every
@pytest.mark.parametrize("c", [1e-4, 1e4])
def test_homogeneity(method, c):
    stack = stack_for(method)
    scaled = FactorStack(stack.a, stack.b, tuple(c * x for x in stack.coefficients), stack.weights)
    by_hand = stacks.replaced(stack, b=[x * c for x in stack.b])
    for other in (scaled, by_hand):
        assert stacks.difference(run(method, other), c * run(method, stack)) < 1e-5


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtype_inputs_and_random_state(method, dtype):
    stack = stack_for(method, dtype=dtype)
    inputs = [x.clone() for x in (*stack.a, *stack.b)]
    state = torch.get_rng_state()
    delta = stacks.merge(method, stack, method.params(**SETTINGS.get(method.name, {})))
    cut = decompose(delta).cut(3)
    assert cut.b.dtype == cut.a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(inputs, (*stack.a, *stack.b), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@every
def test_rank_is_within_what_is_stated(method):
    params = method.params(**SETTINGS.get(method.name, {}))
    for stack in (stack_for(method), stack_for(method, d_out=9, d_in=7)):
        stated = method.rank(stack.ranks, params)
        assert decompose(stacks.merge(method, stack, params)).rank <= stated <= sum(stack.ranks)


@every
def test_retained_energy_grows_with_the_rank(method):
    spectral = decompose(stacks.merge(method, stack := stack_for(method), method.params(**SETTINGS.get(method.name, {}))))
    whole = stacks.dense(spectral)
    errors = [stacks.difference(stacks.dense(spectral.cut(k)), whole) for k in range(1, sum(stack.ranks) + 3)]
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(errors))
    assert errors[sum(stack.ranks) - 1] < 1e-6


@every
def test_a_batch_gives_what_its_sites_give(method):
    batch = stack_for(method, batch=(2, 2))
    whole = run(method, batch)
    for at in ((0, 0), (1, 1)):
        single = stacks.replaced(batch, [x[at] for x in batch.a], [x[at] for x in batch.b])
        assert stacks.difference(whole[at], run(method, single)) < 1e-5


@pytest.mark.gpu
@every
def test_cuda_agrees_with_the_cpu(method):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    stack = stack_for(method)
    moved = stacks.replaced(stack, [x.cuda() for x in stack.a], [x.cuda() for x in stack.b])
    result = run(method, moved)
    assert result.is_cuda
    assert stacks.difference(result.cpu(), run(method, stack)) < 1e-5

"""Laws that every element-wise method keeps in every space, and the factor methods beside them.

The table EXEMPT holds what is excused, each with its reason. Plugins are judged too: see plugged.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from plugged import PLUGGED

from robustmerge_kit import spaces
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.factors import FactorStack, InCore, Weights
from robustmerge_kit.method import Elementwise, Factor
from robustmerge_kit.methods import BUILTIN

OWN = ("ties", "magnitude_prune", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties")
OWN += ("sce", "pcb", "emr", "consensus", "drm", "lora_lego")
METHODS = {method.name: method for method in BUILTIN if method.name in OWN}
METHODS |= {method.name: method for method in PLUGGED if isinstance(method, Elementwise | Factor)}

SPACES: dict[str, tuple[str, Any]] = {
    "full": ("full", spaces.NoOptions()),
    "core": ("core", spaces.CoreOptions()),
    "core deltas": ("core", spaces.CoreOptions(basis="deltas")),
    "knots": ("knots", spaces.NoOptions()),
    "ctm": ("ctm", spaces.CtmOptions(rank=3)),
    "factor": ("factor", spaces.NoOptions()),
}

SPARSE: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.4},
    "magnitude_prune": {"density": 0.4},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5, "ties_density": 0.6},
    "della_linear": {"density": 0.5},
    "della": {"density": 0.5},
    "breadcrumbs": {"density": 0.6, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.6, "gamma": 0.05},
    "sce": {"density": 0.5},
    "pcb": {"density": 0.4},
    "drm": {"density": 0.5},
    "lora_lego": {"rank": 3},
}
NOTHING_DROPPED: dict[str, dict[str, Any]] = {
    name: {"density": 1.0} for name in OWN if name not in ("pcb", "emr", "consensus", "lora_lego")
} | {"consensus": {"agree": 1}}

EXEMPT = {
    ("identity", "pcb", None): "clamps the largest and smallest values and rescales by scores even at density 1",
    ("rank", None, "full"): "the result is dense; the recipe's output decides its rank",
    ("homogeneity", "pcb", None): "tanh of products of entries is not homogeneous",
    ("homogeneity", "lora_lego", None): "adds 1e-8 to a denominator, and centres are not linear in the split",
    ("split", None, "factor"): "works on A and B themselves",
    ("split", "lora_lego", None): "clusters rows of A and columns of B, whose norms decide the distances",
    ("padding", None, "factor"): "in the factors a row of zeros is entries like others; only missing rows are not counted",
    ("padding", "lora_lego", None): "a pair of zero rows is a unit to be clustered like others",
    ("negation", "lora_lego", None): "negative weights turn the B part of a unit and so move the clusters' starts",
    ("negation", None, "factor"): "the sign of a coefficient goes into A only, so an elected sign turns in one factor of two",
}

STACKED = [(name, space) for name in METHODS for space in (SPACES if isinstance(METHODS[name], Elementwise) else (None,))]


def cases(law: str) -> list[Any]:
    """Method x space, without those excused from the law."""
    return [
        pytest.param(name, space, id=f"{name}-{space}" if space else name)
        for name, space in STACKED
        if not any((law, *excused) in EXEMPT for excused in ((name, space), (name, None), (None, space)))
    ]


@dataclass(frozen=True)
class Inputs:
    stack: FactorStack
    identities: tuple[str, ...]
    seed: int = 0


def inputs(
    ranks: Sequence[int] = (3, 3, 3),
    weights: Sequence[float] = (1.0, 0.5, 1.3),
    dtype: torch.dtype = torch.float64,
    size: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(17 + size)
    a = tuple(torch.randn(r, 12 + size, generator=generator, dtype=torch.float64).to(dtype) for r in ranks)
    b = tuple(torch.randn(15 + size, r, generator=generator, dtype=torch.float64).to(dtype) for r in ranks)
    scales = (2.0, 1.0, 0.5, 1.5)[: len(ranks)]
    coefficients = tuple(w * s for w, s in zip(weights, scales, strict=False))
    return Inputs(FactorStack(a, b, coefficients, Weights.of(weights)), tuple("abcd"[: len(ranks)]))


def run(name: str, space: str | None, given: Inputs, parameters: dict[str, Any] | None = None) -> Any:
    method = METHODS[name]
    params = method.params(**(SPARSE.get(name, {}) if parameters is None else parameters))
    draws = KeyedDraws.of(given.seed, "site", given.identities)
    if isinstance(method, Factor):
        return method.merge(given.stack, params, draws)
    assert isinstance(method, Elementwise)
    assert space is not None
    represented = spaces.represent(*SPACES[space], given.stack)
    return spaces.merge(method, represented, given.stack.weights, params, draws)


def merged(name: str, space: str | None, given: Inputs, parameters: dict[str, Any] | None = None) -> torch.Tensor:
    delta = run(name, space, given, parameters)
    if isinstance(delta, spaces.Dense):
        return delta.full().double()
    if isinstance(delta, InCore):
        return delta.core.q_b.double() @ delta.matrix @ delta.core.q_a.double().mT
    return delta.b.double() @ delta.a.double()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def with_stack(given: Inputs, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> Inputs:
    return replace(given, stack=replace(given.stack, a=tuple(a), b=tuple(b)))


def test_the_table_names_only_what_exists() -> None:
    assert all(method is None or method in METHODS for _, method, _ in EXEMPT)
    assert all(space is None or space in SPACES for _, _, space in EXEMPT)


@pytest.mark.parametrize(("name", "space"), cases("identity"))
def test_one_adapter_is_itself(name, space) -> None:
    given = inputs((3,), (1.0,), torch.float32)
    want = given.stack.coefficients[0] * given.stack.b[0].double() @ given.stack.a[0].double()
    assert error(merged(name, space, given, NOTHING_DROPPED.get(name, {})), want) < 1e-5


@pytest.mark.parametrize(("name", "space"), cases("permutation"))
def test_the_order_of_adapters_does_not_matter(name, space) -> None:
    given, order = inputs(), (2, 0, 1)
    stack = given.stack
    turned = FactorStack(
        tuple(stack.a[t] for t in order),
        tuple(stack.b[t] for t in order),
        tuple(stack.coefficients[t] for t in order),
        Weights.of([stack.weights.each[t] for t in order]),
    )
    again = Inputs(turned, tuple(given.identities[t] for t in order))
    assert error(merged(name, space, again), merged(name, space, given)) < 1e-6


@pytest.mark.parametrize(("name", "space"), cases("seed"))
def test_only_random_methods_depend_on_the_seed(name, space) -> None:
    given = inputs(size=8)
    first, again = merged(name, space, given), merged(name, space, given)
    assert torch.equal(first, again)
    random = METHODS[name].random(METHODS[name].params(**SPARSE.get(name, {})))
    other = merged(name, space, replace(given, seed=1))
    # Restarts of k-means may well agree on the best clustering.
    assert torch.equal(first, other) or random
    if random and name != "lora_lego":
        assert not torch.equal(first, other)


@pytest.mark.parametrize("absent", [(), (0.7,)])
@pytest.mark.parametrize(("name", "space"), cases("zero"))
def test_an_adapter_without_a_delta_changes_nothing(name, space, absent) -> None:
    """It is not handed over; none of these settings divides by the sum of all weights."""
    given = inputs()
    counted = replace(given.stack, weights=Weights.of(given.stack.weights.each, absent))
    assert torch.equal(merged(name, space, replace(given, stack=counted)), merged(name, space, given))


@pytest.mark.parametrize("row", [0.0, 1e-6])
@pytest.mark.parametrize(("name", "space"), cases("weak rows"))
def test_weak_rows_give_finite_numbers(name, space, row) -> None:
    given = inputs(dtype=torch.bfloat16)
    a = [x.clone() for x in given.stack.a]
    b = [x.clone() for x in given.stack.b]
    a[0][1] *= row
    b[1][:, 2] *= row
    assert bool(merged(name, space, with_stack(given, a, b)).isfinite().all())


@pytest.mark.parametrize(("name", "space"), cases("padding"))
def test_unequal_ranks_and_scales_are_padding_and_folding_by_hand(name, space) -> None:
    given = inputs((2, 4, 3))
    stack = given.stack
    a = [torch.nn.functional.pad(x, (0, 0, 0, 4 - x.shape[0])) for x in stack.a]
    b = [torch.nn.functional.pad(c * x, (0, 4 - x.shape[1])) for c, x in zip(stack.coefficients, stack.b, strict=True)]
    by_hand = replace(given, stack=FactorStack(tuple(a), tuple(b), (1.0,) * 3, stack.weights))
    assert error(merged(name, space, by_hand), merged(name, space, given)) < 1e-6


@pytest.mark.parametrize(("name", "space"), cases("split"))
def test_the_split_into_factors_does_not_matter(name, space) -> None:
    """Any invertible G between B and A; in core with the published basis only one number for all adapters."""
    given = inputs()
    generator = torch.Generator().manual_seed(5)
    if space == "core":
        mixing = [torch.eye(3, dtype=torch.float64) * 3.0] * 3
    else:
        mixing = [torch.eye(3).double() + 0.3 * torch.randn(3, 3, generator=generator).double() for _ in range(3)]
    a = [g @ x for g, x in zip(mixing, given.stack.a, strict=True)]
    b = [x @ g.inverse() for g, x in zip(mixing, given.stack.b, strict=True)]
    assert error(merged(name, space, with_stack(given, a, b)), merged(name, space, given)) < 1e-4


@pytest.mark.parametrize(("name", "space"), cases("negation"))
def test_negative_weights_negate(name, space) -> None:
    given = inputs()
    weights = Weights.of([-w for w in given.stack.weights.each])
    negated = replace(given.stack, coefficients=tuple(-c for c in given.stack.coefficients), weights=weights)
    assert error(merged(name, space, replace(given, stack=negated)), -merged(name, space, given)) < 1e-6


@pytest.mark.parametrize(("name", "space"), cases("one negative"))
def test_one_negative_weight_gives_finite_numbers(name, space) -> None:
    assert bool(merged(name, space, inputs(weights=(1.0, -1.0, 0.5))).isfinite().all())


@pytest.mark.parametrize("factor", [1e-4, 1e4])
@pytest.mark.parametrize(("name", "space"), cases("homogeneity"))
def test_scaling_all_deltas_scales_the_result(name, space, factor) -> None:
    given = inputs()
    scaled = replace(given.stack, coefficients=tuple(factor * c for c in given.stack.coefficients))
    assert error(merged(name, space, replace(given, stack=scaled)), factor * merged(name, space, given)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("name", "space"), cases("purity"))
def test_inputs_and_global_random_state_stay_as_they_are(name, space, dtype) -> None:
    given = inputs(dtype=dtype)
    before = [x.clone() for x in (*given.stack.a, *given.stack.b)]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    merged(name, space, given)
    assert all(torch.equal(x, y) for x, y in zip(before, (*given.stack.a, *given.stack.b), strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("ranks", [(3, 3, 3), (2, 4, 3), (3,), (2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize(("name", "space"), cases("rank"))
def test_the_rank_is_at_most_what_is_stated(name, space, ranks) -> None:
    dense = merged(name, space, inputs(ranks, (1.0, 0.5, 1.3, 0.8)[: len(ranks)]))
    params = METHODS[name].params(**SPARSE.get(name, {}))
    bound = METHODS[name].rank(ranks, params) if space is None else spaces.rank(*SPACES[space], ranks)
    assert int(torch.linalg.matrix_rank(dense, rtol=1e-10)) <= bound


@pytest.mark.parametrize(("name", "space"), cases("copies"))
def test_copies_and_shared_factors_give_finite_numbers(name, space) -> None:
    given = inputs()
    copies = with_stack(given, [given.stack.a[0]] * 3, [given.stack.b[0]] * 3)
    shared = with_stack(given, [given.stack.a[0]] * 3, given.stack.b)
    assert bool(merged(name, space, copies).isfinite().all())
    assert bool(merged(name, space, shared).isfinite().all())

"""Each space against its definition on dense deltas in float64."""

from collections.abc import Sequence

import naive
import numpy as np
import pytest
import torch
from pydantic import BaseModel

from robustmerge_kit import spaces
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.factors import FactorStack, InCore, LowRank, Weights, core
from robustmerge_kit.methods import dare, pcb, ties
from robustmerge_kit.spaces import CoreOptions, CtmOptions, Dense, NoOptions

SPACES: list[tuple[str, BaseModel]] = [
    ("full", NoOptions()),
    ("core", CoreOptions()),
    ("core", CoreOptions(basis="deltas")),
    ("knots", NoOptions()),
    ("ctm", CtmOptions(rank=3)),
    ("factor", NoOptions()),
]
IDS = [f"{name}{index}" for index, (name, _) in enumerate(SPACES)]
TIES, PARAMS = ties.METHODS[0], ties.Ties(density=0.4)


def stack_of(ranks: Sequence[int], d_out: int, d_in: int, batch: tuple[int, ...] = (), seed: int = 0) -> FactorStack:
    generator = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn((*batch, r, d_in), generator=generator, dtype=torch.float64) for r in ranks)
    b = tuple(torch.randn((*batch, d_out, r), generator=generator, dtype=torch.float64) for r in ranks)
    weights = [1.0, 0.5, -0.8, 1.2][: len(ranks)]
    return FactorStack(a, b, tuple(2.0 * w for w in weights), Weights.of(weights))


def draws_of(stack: FactorStack, *sites: str) -> KeyedDraws:
    return KeyedDraws.of(0, sites or "site", [str(t) for t in range(len(stack))])


def deltas(stack: FactorStack) -> list[np.ndarray]:
    return [(c * b @ a).numpy() for c, a, b in zip(stack.coefficients, stack.a, stack.b, strict=True)]


def dense(delta: spaces.Merged) -> torch.Tensor:
    if isinstance(delta, Dense):
        return delta.full()
    if isinstance(delta, InCore):
        return delta.core.q_b @ delta.matrix @ delta.core.q_a.mT
    return delta.b @ delta.a


def left(x: np.ndarray, k: int | None = None) -> np.ndarray:
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, : k if k is not None else int((s > 1e-10 * s[0]).sum())]


def in_space(name: str, options: BaseModel, stack: FactorStack) -> torch.Tensor:
    """TIES in a space by the book, on dense matrices."""
    ds = deltas(stack)

    def merge(xs: list[np.ndarray]) -> np.ndarray:
        return naive.ties(xs, stack.weights.each, None, density=0.4)

    if name == "full":
        return torch.from_numpy(merge(ds))
    if name == "factor":
        a, b = [], []
        for t, c in enumerate(stack.coefficients):
            a.append(np.sign(c) * abs(c) ** 0.5 * stack.a[t].numpy())
            b.append(abs(c) ** 0.5 * stack.b[t].numpy().T)
        return torch.from_numpy(merge(b).T @ merge(a))
    if name == "knots":
        u = left(np.concatenate(ds, 1))
        return torch.from_numpy(u @ merge([u.T @ d for d in ds]))
    if isinstance(options, CtmOptions):
        u, v = tucker(ds, options)
        return torch.from_numpy(u @ merge([u.T @ d @ v for d in ds]) @ v.T)
    if options == CoreOptions():
        u = left(np.concatenate([c * b.numpy() for c, b in zip(stack.coefficients, stack.b, strict=True)], 1))
        v = left(np.concatenate([a.numpy().T for a in stack.a], 1))
    else:
        u, v = left(np.concatenate(ds, 1)), left(np.concatenate([d.T for d in ds], 1))
    return torch.from_numpy(u @ merge([u.T @ d @ v for d in ds]) @ v.T)


def tucker(ds: list[np.ndarray], options: CtmOptions) -> tuple[np.ndarray, np.ndarray]:
    k, sizes = options.rank, [np.linalg.norm(d) for d in ds]
    xs = [(options.beta * m + (1 - options.beta) * np.mean(sizes)) * d / m for d, m in zip(ds, sizes, strict=True)]
    whole = sum(np.linalg.norm(x) ** 2 for x in xs)
    u, v = left(np.concatenate(xs, 1), k), left(np.concatenate([x.T for x in xs], 1), k)
    errors: list[float] = []
    for _ in range(options.max_iter):
        u = left(np.concatenate([x @ v for x in xs], 1), k)
        v = left(np.concatenate([x.T @ u for x in xs], 1), k)
        kept = sum(np.linalg.norm(u.T @ x @ v) ** 2 for x in xs)
        errors.append(abs(whole - kept) ** 0.5 / whole**0.5)
        if len(errors) >= 3 and abs(errors[-2] - errors[-1]) < options.tol:
            break
    return u, v


@pytest.mark.parametrize("shape", [(20, 14), (9, 13)], ids=["R < d", "R > d"])
@pytest.mark.parametrize("ranks", [(3, 3, 3, 3), (2, 4, 3), (3,)], ids=str)
@pytest.mark.parametrize(("name", "options"), SPACES, ids=IDS)
def test_ties_in_a_space_is_ties_on_what_the_space_defines(name, options, ranks, shape) -> None:
    if name == "factor" and len(set(ranks)) > 1:
        pytest.skip("unequal ranks in factor space have a test of their own")
    stack = stack_of(ranks, *shape)
    got = dense(spaces.merge(TIES, spaces.represent(name, options, stack), stack.weights, PARAMS, draws_of(stack)))
    want = in_space(name, options, stack)
    assert float((got - want).norm() / want.norm()) < 1e-8


def test_factor_space_counts_only_an_adapters_own_rank_rows() -> None:
    """Both stacks are trimmed to a fraction of r_t rows, and missing rows take part in nothing."""
    stack = stack_of((2, 4), 10, 8)
    got = spaces.merge(TIES, spaces.represent("factor", NoOptions(), stack), stack.weights, PARAMS, draws_of(stack))
    assert isinstance(got, LowRank)
    assert got.rank == 4
    sides = []
    for factors, signed in ((stack.a, True), ([b.mT for b in stack.b], False)):
        xs = []
        for x, c in zip(factors, stack.coefficients, strict=True):
            own = naive.trimmed(x.numpy() * abs(c) ** 0.5 * (np.sign(c) if signed else 1), 0.4)
            xs.append(np.concatenate([own, np.zeros((4 - len(own), own.shape[1]))]))
        sides.append(torch.from_numpy(naive.elected(xs, stack.weights.each, True)))
    assert torch.allclose(got.a, sides[0])
    assert torch.allclose(got.b, sides[1].mT)


@pytest.mark.parametrize(("name", "options"), SPACES, ids=IDS)
@pytest.mark.parametrize(
    ("method", "params"),
    [(TIES, PARAMS), (dare.METHODS[0], dare.DareLinear(density=0.5, rescale="l1")), (pcb.METHODS[0], pcb.Pcb())],
    ids=["ties", "dare", "pcb"],
)
def test_a_batch_is_its_sites_one_by_one(name, options, method, params) -> None:
    stack = stack_of((2, 3), 9, 7, batch=(3,))
    sites = ["x", "y", "z"]
    got = spaces.merge(method, spaces.represent(name, options, stack), stack.weights, params, draws_of(stack, *sites))
    for i, site in enumerate(sites):
        alone = FactorStack(tuple(x[i] for x in stack.a), tuple(x[i] for x in stack.b), stack.coefficients, stack.weights)
        want = spaces.merge(method, spaces.represent(name, options, alone), alone.weights, params, draws_of(alone, site))
        assert torch.allclose(dense(got)[i], dense(want), atol=1e-10)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize(("name", "options"), [s for s in SPACES if s[0] in ("full", "core", "knots")], ids=IDS[:4])
def test_spaces_agree_on_sums(name, options, batch) -> None:
    stack = stack_of((3, 2, 4), 20, 14, batch)
    coefficients = torch.tensor([1.0, 2.0, -0.5]).expand(*batch, 3)
    got = dense(spaces.combine(spaces.represent(name, options, stack), coefficients))
    want = sum(k * c * b @ a for k, c, a, b in zip((1.0, 2.0, -0.5), stack.coefficients, stack.a, stack.b, strict=True))
    assert torch.allclose(got, want, atol=1e-10)


def test_a_given_core_is_used() -> None:
    stack = stack_of((3, 2), 20, 14)
    shared = core(stack)
    got = spaces.merge(TIES, spaces.represent("core", CoreOptions(), stack, shared), stack.weights, PARAMS, draws_of(stack))
    assert isinstance(got, InCore)
    assert got.core is shared


@pytest.mark.parametrize(
    ("name", "options", "rank"),
    [
        ("full", NoOptions(), 9),
        ("core", CoreOptions(), 9),
        ("knots", NoOptions(), 9),
        ("ctm", CtmOptions(), 4),
        ("ctm", CtmOptions(rank=6), 6),
        ("ctm", CtmOptions(rank=99), 9),
        ("factor", NoOptions(), 4),
    ],
)
def test_rank_bounds(name: str, options: BaseModel, rank: int) -> None:
    assert spaces.rank(name, options, (2, 4, 3)) == rank


def test_factor_space_draws_different_masks_for_a_and_b() -> None:
    ones = FactorStack((torch.ones(4, 4),), (torch.ones(4, 4),), (1.0,), Weights.of((1.0,)))
    params = dare.DareLinear(density=0.5, rescale="none")
    got = spaces.merge(dare.METHODS[0], spaces.represent("factor", NoOptions(), ones), ones.weights, params, draws_of(ones))
    assert isinstance(got, LowRank)
    assert not torch.equal(got.a, got.b.mT)


def test_the_sweeps_of_the_common_basis_stop_at_the_third_at_the_earliest() -> None:
    shared = core(stack_of((3, 3, 3), 20, 14))
    patient = spaces.common_basis(shared, CtmOptions(rank=3, tol=1e9))[0]
    third, second = (spaces.common_basis(shared, CtmOptions(rank=3, tol=0, max_iter=i))[0] for i in (3, 2))
    assert torch.equal(patient, third)
    assert not torch.allclose(patient, second)

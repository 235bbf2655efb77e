"""Gram, core, decomposition and truncation against dense float64 matrices."""

import pytest
import stacks
import torch

from robustmerge_kit import factors
from robustmerge_kit.factors import InCore, LowRank
from robustmerge_kit.orthonormal import Basis, orthonormal

CASES = [pytest.param(make, id=name) for name, make in stacks.CASES.items()]


@pytest.mark.parametrize("make", CASES)
def test_gram_norms_and_rows_are_those_of_the_dense_deltas(make):
    stack = make()
    d = torch.stack(stacks.deltas(stack))
    wanted = torch.einsum("iab,jab->ij", d, d)
    size = wanted.diagonal().sqrt()
    assert ((factors.gram(stack) - wanted).abs() <= 1e-12 * size[:, None] * size).all()
    torch.testing.assert_close(factors.norms(stack), size, rtol=1e-11, atol=0)
    by_row = torch.einsum("iab,jab->aij", d, d)
    assert stacks.difference(factors.rowwise_gram(stack), by_row) < 1e-10


@pytest.mark.parametrize("make", CASES)
def test_the_core_holds_every_delta_in_orthonormal_bases(make):
    stack = make()
    core = factors.core(stack)
    exact = stack.dtype == torch.float64
    r = sum(stack.ranks)
    assert core.q_b.shape == (stack.d_out, min(stack.d_out, r))
    assert core.q_a.shape == (stack.d_in, min(stack.d_in, r))
    assert core.q_b.dtype == stack.dtype
    assert core.eps == (2.0**-52 if exact else 2.0**-23)
    for q in (core.q_b.double(), core.q_a.double()):
        assert (q.mT @ q - torch.eye(q.shape[-1])).abs().max() < (1e-13 if exact else 5e-7)
    for m, d in zip(core.cores, stacks.deltas(stack), strict=True):
        assert stacks.difference(core.q_b.double() @ m @ core.q_a.double().mT, d) < (1e-13 if exact else 5e-7)
    torch.testing.assert_close(core.norms, factors.norms(stack), rtol=1e-9, atol=0)
    torch.testing.assert_close(core.sum, core.cores.sum(0))


@pytest.mark.parametrize("make", CASES)
def test_svds_of_the_core_have_the_rank_of_the_deltas(make):
    stack = make()
    core = factors.core(stack)
    for (u, s, v), m, d in zip(core.svds, core.cores, stacks.deltas(stack), strict=True):
        torch.testing.assert_close((u * s) @ v.mT, m, rtol=0, atol=1e-6 * float(s[0]))
        values = torch.linalg.svdvals(d)[: len(s)]
        assert ((s - values).abs() < 5e-6 * values[0]).all()
        assert int((s > 0).sum()) == int((values > 1e-6 * values[0]).sum())


@pytest.mark.parametrize("make", [stacks.duplicates, stacks.shared_a, stacks.steep])
def test_shared_directions_stay_shared_to_the_last_bits(make):
    """With different coefficients, where folding them in float32 first would open new directions of size 1e-8."""
    core = factors.core(make())
    values = torch.linalg.svdvals(core.r_a)
    assert int((values > 1e-14 * values[0]).sum()) == 5


def test_a_cholesky_basis_is_as_good_as_householder():
    x = torch.randn(300, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.logspace(8, -8, 40, dtype=torch.float64)
    quick, slow = orthonormal(x, exact=False), orthonormal(x, exact=True)
    for basis, r in (quick, slow):
        q = basis.full
        assert (q.mT @ q - torch.eye(40)).abs().max() < 1e-12
        assert ((q @ r - x).norm(dim=0) < 1e-13 * x.norm(dim=0)).all()
    assert not torch.equal(quick[1].sign(), slow[1].sign()), "both took the same path"


@pytest.mark.parametrize("close", [1e-3, 1e-6, 1e-9, 1e-15, 0.0])
def test_nearly_dependent_columns_fall_back_to_householder(close):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(60, 8, generator=draw, dtype=torch.float64)
    x[:, 7] = x[:, 0] + close * torch.randn(60, generator=draw, dtype=torch.float64)
    basis, r = orthonormal(x, exact=False)
    q = basis.full
    assert (q.mT @ q - torch.eye(8)).abs().max() < 1e-7
    assert ((q @ r - x).norm(dim=0) < 1e-13 * x.norm(dim=0)).all()


def test_a_batch_gives_what_its_sites_give_even_when_some_are_degenerate():
    batch = stacks.make([4, 3, 5], batch=(2, 2), seed=4)
    batch.a[1][0, 1, 0] = batch.a[0][0, 1, 2]
    whole = factors.core(batch)
    grams = factors.gram(batch)
    for i, site in enumerate(whole.sites()):
        at = divmod(i, 2)
        single = stacks.replaced(batch, [x[at] for x in batch.a], [x[at] for x in batch.b])
        for m, d in zip(site.cores, stacks.deltas(single), strict=True):
            assert stacks.difference(site.q_b.double() @ m @ site.q_a.double().mT, d) < 5e-7
        torch.testing.assert_close(grams[at], factors.gram(single))
        torch.testing.assert_close(factors.rowwise_gram(batch)[at], factors.rowwise_gram(single))


def test_coefficients_may_differ_between_the_sites_of_a_batch():
    batch = stacks.make([4, 3], batch=(3,))
    by = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    changed = stacks.replace(batch, coefficients=(batch.coefficients[0] * by, batch.coefficients[1]))
    for i in range(3):
        single = stacks.replaced(batch, [x[i] for x in batch.a], [x[i] for x in batch.b])
        single = stacks.replace(single, coefficients=(batch.coefficients[0] * float(by[i]), batch.coefficients[1]))
        torch.testing.assert_close(factors.gram(changed)[i], factors.gram(single))
        torch.testing.assert_close(changed.folded_b(0)[i], single.folded_b(0))
        torch.testing.assert_close(factors.core(changed).norms[i], factors.core(single).norms)


@pytest.mark.parametrize(
    ("values", "shape", "eps", "rank"),
    [
        ([1.0, 0.5, 1e-9], (3, 3), 1e-7, 2),
        ([1.0, 0.5, 1e-9], (3, 3), 1e-12, 3),
        ([1e-20, 0.5e-20], (2, 2), 1e-7, 2),
        ([1.0, 2.9e-7, 3.1e-7], (2, 3), 1e-7, 2),
        ([0.0, 0.0], (2, 2), 1e-7, 0),
        ([], (0, 4), 1e-7, 0),
    ],
)
def test_numerical_rank_is_relative(values, shape, eps, rank):
    assert int(factors.nrank(torch.tensor(values, dtype=torch.float64), shape, eps)) == rank


def test_polar_is_a_partial_isometry_of_the_numerical_rank():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    doubled = torch.cat([x, 2 * x], -1)
    p = factors.polar(doubled, 2.0**-52)
    torch.testing.assert_close(torch.linalg.svdvals(p), torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    symmetric = p.mT @ doubled
    torch.testing.assert_close(symmetric, symmetric.mT)
    assert not factors.polar(torch.zeros(4, 2), 2.0**-23).any()
    batch = torch.stack([doubled, torch.zeros_like(doubled)])
    torch.testing.assert_close(factors.polar(batch, 2.0**-52)[0], p)


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("form", ["factors", "core"])
def test_cutting_is_the_best_approximation(make, form):
    stack = make()
    wanted = sum(stacks.deltas(stack))
    whole = factors.core(stack)
    ones = torch.ones(len(stack), dtype=torch.float64)
    delta = factors.concat(stack, ones) if form == "factors" else whole.combine(ones)
    assert stacks.difference(stacks.dense(delta), wanted) < 1e-6
    torch.testing.assert_close(factors.norm(delta), torch.linalg.matrix_norm(wanted), rtol=1e-6, atol=0)
    spectral = factors.decompose(delta)
    torch.testing.assert_close(factors.norm(spectral), torch.linalg.matrix_norm(wanted), rtol=1e-6, atol=0)
    values = torch.linalg.svdvals(wanted)
    for k in (1, 3, min(wanted.shape), sum(stack.ranks) + 5):
        cut = spectral.cut(k)
        assert cut.rank == k
        error = torch.linalg.matrix_norm(stacks.dense(cut) - wanted)
        assert abs(error - torch.linalg.vector_norm(values[k:])) < 2e-6 * values.norm()
        torch.testing.assert_close(cut.b.norm(dim=0), cut.a.norm(dim=1), rtol=1e-4, atol=1e-6 * float(values[0]) ** 0.5)
        top = cut.b.gather(0, cut.b.abs().argmax(0, keepdim=True))
        assert (top >= 0).all()
        assert not cut.b[:, spectral.rank :].any()
        assert not cut.a[spectral.rank :].any()


@pytest.mark.parametrize(
    ("column", "flips"),
    [([-2.0, 2.0, 1.0], True), ([2.0, -2.0, 1.0], False), ([1.0, -3.0, 2.0], True), ([0.0, 1.0, 0.5], False)],
)
def test_the_sign_is_that_of_the_first_largest_entry(column, flips):
    """Equal magnitudes of both signs: the first decides."""
    eye = torch.eye(3)
    u = torch.tensor(column, dtype=torch.float64)[:, None]
    one = torch.ones(1, dtype=torch.float64)
    cut = factors.Spectral(Basis.of(eye), u, one, eye[:, :1].double(), Basis.of(eye)).cut(1)
    assert torch.equal(cut.b, (-u if flips else u).float())
    assert cut.a[0, 0] == (-1 if flips else 1)


def test_values_put_back_come_in_descending_order():
    spectral = factors.decompose(factors.concat(stacks.make([3]), [1.0]))
    changed = spectral.with_values(torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64))
    assert changed.s.tolist() == [5.0, 2.0, 1.0]
    torch.testing.assert_close(changed.u[:, 0], spectral.u[:, 1])


def test_padding_keeps_the_delta():
    delta = factors.concat(stacks.make([2, 3]), [1.0, 2.0])
    wide = factors.pad(delta, 9)
    assert (wide.b.shape, wide.a.shape) == ((40, 9), (9, 32))
    assert torch.equal(stacks.dense(wide), stacks.dense(delta))
    assert factors.pad(delta, 3) is delta


def test_concat_takes_one_combination_per_row():
    stack = stacks.make([2, 3])
    rows = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = sum(rows[:, t, None] * d for t, d in enumerate(stacks.deltas(stack)))
    assert stacks.difference(stacks.dense(factors.concat(stack, rows)), wanted) < 1e-6


def test_a_zero_delta_decomposes_to_nothing():
    zero = LowRank(torch.zeros(6, 2), torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    spectral = factors.decompose(zero)
    assert spectral.rank == 0
    assert not stacks.dense(spectral.cut(3)).any()
    core = factors.core(stacks.make([2]))
    assert factors.decompose(InCore(core, torch.zeros_like(core.sum))).rank == 0


def test_inputs_are_left_alone():
    stack = stacks.make([3, 4])
    before = [x.clone() for x in (*stack.a, *stack.b)]
    factors.decompose(InCore(core := factors.core(stack), core.sum)).cut(3)
    factors.gram(stack)
    assert all(torch.equal(x, y) for x, y in zip((*stack.a, *stack.b), before, strict=True))

"""Pre and post steps against their definitions on dense float64 deltas."""

import numpy as np
import pytest
import stacks
import torch
from pydantic import ValidationError

from robustmerge_kit import factors
from robustmerge_kit.errors import RecipeError
from robustmerge_kit.factors import LowRank, core, decompose
from robustmerge_kit.transforms import POST, PRE, find_post, find_pre
from robustmerge_kit.verify import oracles

CASES = [pytest.param(build, id=name) for name, build in stacks.CASES.items()]


def before(name: str, stack: factors.FactorStack, **options: object) -> factors.FactorStack:
    step = find_pre(name)
    return step.apply(stack, step.params(**options))


def after(name: str, delta: factors.Spectral, small: factors.Core, **options: object) -> factors.Spectral:
    step = find_post(name)
    return step.apply(delta, small, step.params(**options))


def total(stack: factors.FactorStack) -> tuple[factors.Core, factors.Spectral]:
    small = core(stack)
    return small, decompose(small.combine(torch.ones(len(stack), dtype=torch.float64)))


def sizes(stack: factors.FactorStack) -> np.ndarray:
    return np.array([np.linalg.norm(d.numpy()) for d in stacks.deltas(stack)])


def limit(stack: factors.FactorStack) -> float:
    return 1e-8 if stack.dtype == torch.float64 else 1e-5


@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_norm_balance(build, beta):
    stack = build()
    m = sizes(stack)
    changed = before("norm_balance", stack, beta=beta)
    for new, old, size in zip(stacks.deltas(changed), stacks.deltas(stack), m, strict=True):
        assert stacks.difference(new, old * (beta + (1 - beta) * m.mean() / size)) < 1e-12
    assert changed.weights == stack.weights


@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize("k", [0.0, 1.0, 3.0])
def test_norm_cap(build, k):
    stack = build()
    m = sizes(stack)
    cap = np.median(m) + k * np.median(np.abs(m - np.median(m)))
    for new, old, size in zip(stacks.deltas(before("norm_cap", stack, k=k)), stacks.deltas(stack), m, strict=True):
        assert stacks.difference(new, old * min(1.0, cap / size)) < 1e-11


def test_norm_cap_cuts_only_the_outlier():
    stack = stacks.make([3] * 5, scales=[1.0, 1.1, 0.9, 1.0, 50.0])
    changed = before("norm_cap", stack)
    assert changed.coefficients[:4] == stack.coefficients[:4]
    assert changed.coefficients[4] < 0.05 * stack.coefficients[4]


@pytest.mark.parametrize("build", CASES)
def test_pico(build):
    stack = build()
    if stack.dtype in (torch.bfloat16, torch.float16):
        assert before("pico", stack).b[0].dtype == torch.float32
    joined = np.hstack([c * b.double().numpy() for b, c in zip(stack.b, stack.coefficients, strict=True)])
    u, s, _ = np.linalg.svd(joined, full_matrices=False)
    a = 1 / (1 + (len(stack) - 1) * s**2 / (s**2).sum())
    calibrate = np.eye(stack.d_out) + u @ np.diag(a - 1) @ u.T
    for new, old in zip(stacks.deltas(before("pico", stack)), stacks.deltas(stack), strict=True):
        assert stacks.difference(new, torch.from_numpy(calibrate) @ old) < limit(stack)
    _, delta = total(stack)
    restored = find_pre("pico").restore(delta, factors.norms(stack))
    torch.testing.assert_close(factors.norm(restored), factors.norms(stack).mean())
    assert stacks.difference(stacks.dense(restored) / restored.s[0], stacks.dense(delta) / delta.s[0]) < 1e-6


@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize("mode", ["none", "balanced", "svd"])
def test_canonicalize_keeps_every_delta(build, mode):
    stack = build()
    changed = before("canonicalize", stack, mode=mode)
    assert changed.dtype == stack.dtype
    for new, old in zip(stacks.deltas(changed), stacks.deltas(stack), strict=True):
        assert stacks.difference(new, old) < limit(stack)


@pytest.mark.parametrize("negative", [1.0, -1.0])
def test_canonicalize_forgets_the_split(negative):
    stack = stacks.make([4, 3], weights=[negative, 1.0])
    draw = torch.Generator().manual_seed(9)
    gauge = [torch.eye(r) + 0.3 * torch.randn(r, r, generator=draw) for r in stack.ranks]
    turned = stacks.replaced(
        stack,
        [g @ a for g, a in zip(gauge, stack.a, strict=True)],
        [b @ torch.linalg.inv(g) for g, b in zip(gauge, stack.b, strict=True)],
    )
    for one, other in [(before("canonicalize", s, mode="svd") for s in (stack, turned))]:
        for t, d in enumerate(stacks.deltas(stack)):
            assert stacks.difference(one.folded_a(t), other.folded_a(t)) < 1e-4
            b = one.folded_b(t)
            assert stacks.difference(b, other.folded_b(t)) < 1e-4
            s = torch.linalg.svdvals(d)
            torch.testing.assert_close(b.norm(dim=0).double() ** 2, s[: len(b.mT)], rtol=1e-5, atol=0)
            assert (b.gather(0, b.abs().argmax(0, keepdim=True)) > 0).all()


def test_balanced_factors_have_one_norm_whatever_the_scale():
    stack = stacks.make([4, 3], weights=[-3.0, 1.0])
    scaled = stacks.replaced(stack, [7 * a for a in stack.a], [b / 7 for b in stack.b])
    for s in (stack, scaled):
        changed = before("canonicalize", s, mode="balanced")
        for t in range(2):
            torch.testing.assert_close(changed.folded_a(t).norm(), changed.folded_b(t).norm())
            assert stacks.difference(changed.folded_a(t), before("canonicalize", stack, mode="balanced").folded_a(t)) < 1e-6


@pytest.mark.parametrize(
    "step", [("norm_balance", {}), ("canonicalize", {"mode": "balanced"}), ("canonicalize", {"mode": "svd"})]
)
def test_shared_directions_survive_a_step(step):
    """Scaling in float32 would open spurious directions, see the law on duplicates."""
    name, options = step
    for build in (stacks.duplicates, stacks.steep):
        changed = before(name, build(), **options)
        values = torch.linalg.svdvals(core(changed).r_a)
        top = 1e-10 if (name, options.get("mode")) != ("canonicalize", "svd") else 1e-6
        if build is stacks.duplicates or options.get("mode") != "svd":
            assert int((values > top * values[0]).sum()) == 5


@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.0])
def test_svc(build, alpha):
    stack = build()
    small, delta = total(stack)
    d = [x.numpy() for x in stacks.deltas(stack)]
    wanted = torch.from_numpy(oracles.svc(sum(d), d, alpha))
    changed = after("svc", delta, small, alpha=alpha)
    assert stacks.difference(stacks.dense(changed), wanted) < limit(stack)
    assert (changed.s.diff() <= 0).all()
    # The same delta in bases of its own, as a factor method returns it.
    cut = LowRank((delta.q_b.double() @ delta.u) * delta.s, (delta.q_a.double() @ delta.v).mT)
    assert stacks.difference(stacks.dense(after("svc", decompose(cut), small, alpha=alpha)), wanted) < 2 * limit(stack)


def test_svc_where_an_adapter_does_not_touch_a_direction():
    """Two adapters on orthogonal outputs: each direction is supplied once and missing once."""
    stack = stacks.make([1, 1], 4, 3)
    b = [torch.tensor([[1.0], [0], [0], [0]]), torch.tensor([[0.0], [1], [0], [0]])]
    small, delta = total(stacks.replaced(stack, [torch.eye(1, 3), 2 * torch.eye(3)[1:2]], b))
    torch.testing.assert_close(after("svc", delta, small, alpha=1.0).s, delta.s)
    torch.testing.assert_close(after("svc", delta, small, alpha=0.5).s, delta.s * 2 / 1.5)


@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize("beta", [0.01, 0.3, 0.9, 1.0])
def test_subspace_boost(build, beta):
    stack = build()
    small, delta = total(stack)
    wanted = torch.from_numpy(oracles.subspace_boost(sum(x.numpy() for x in stacks.deltas(stack)), beta))
    assert stacks.difference(stacks.dense(after("subspace_boost", delta, small, beta=beta)), wanted) < limit(stack)


@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize(
    ("to", "measure"), [("mean_norm", np.mean), ("max_norm", np.max), ("median_norm", np.median), (2.5, None)]
)
def test_rescale_output(build, to, measure):
    stack = build()
    small, delta = total(stack)
    whole = sum(stacks.deltas(stack))
    wanted = to if measure is None else measure(sizes(stack))
    changed = stacks.dense(after("rescale_output", delta, small, to=to))
    assert stacks.difference(changed, whole * wanted / whole.norm()) < limit(stack)


POSTS = [
    ("svc", {}),
    ("subspace_boost", {"beta": 0.4}),
    ("rescale_output", {"to": "max_norm"}),
    ("rescale_output", {"to": 3.0}),
]


@pytest.mark.parametrize(("name", "options"), POSTS)
def test_post_steps_leave_a_zero_delta_at_zero(name, options):
    stack = stacks.make([3, 3])
    stack = stacks.replaced(stack, [stack.a[0]] * 2, [stack.b[0], -stack.b[0]])
    small, delta = total(stack)
    assert delta.rank == 0
    assert not after(name, delta, small, **options).s.any()


@pytest.mark.parametrize(
    ("name", "options"),
    [(step.name, {"canonicalize": {"mode": "svd"}}.get(step.name, {})) for step in PRE] + POSTS,
)
def test_a_batch_gives_what_its_sites_give(name, options):
    batch = stacks.make([3, 4], batch=(3,), weights=[1.0, -0.5])
    for i in range(3):
        single = stacks.replaced(batch, [x[i] for x in batch.a], [x[i] for x in batch.b])
        if any(step.name == name for step in PRE):
            changed, alone = before(name, batch, **options), before(name, single, **options)
            assert stacks.difference(factors.gram(changed)[i], factors.gram(alone)) < 1e-5
        else:
            changed, alone = after(name, *total(batch)[::-1], **options), after(name, *total(single)[::-1], **options)
            assert stacks.difference(stacks.dense(changed)[i], stacks.dense(alone)) < 1e-5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("norm_balance", {"beta": 1.1}),
        ("norm_cap", {"k": -1}),
        ("canonicalize", {"mode": "qr"}),
        ("pico", {"alpha": 1}),
        ("svc", {"alpha": 0}),
        ("subspace_boost", {}),
        ("subspace_boost", {"beta": 0}),
        ("rescale_output", {}),
        ("rescale_output", {"to": "norm"}),
        ("rescale_output", {"to": 0}),
    ],
)
def test_parameters_out_of_range(name, options):
    step = next(step for step in (*PRE, *POST) if step.name == name)
    with pytest.raises(ValidationError):
        step.params(**options)


@pytest.mark.parametrize(
    ("find", "name", "says"),
    [
        (find_pre, "norm_balanc", "did you mean norm_balance"),
        (find_pre, "svc", "move it to `post:`"),
        (find_post, "pico", "move it to `pre:`"),
        (find_post, "xyz", "post steps are svc, subspace_boost, rescale_output"),
    ],
)
def test_unknown_steps(find, name, says):
    with pytest.raises(RecipeError, match=says):
        find(name)

"""Random stacks of adapters at one site, and what a method makes of them as a dense float64 matrix."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustmerge_kit.factors import Core, FactorStack, InCore, LowRank, Spectral, Weights, concat, core, gram, rowwise_gram
from robustmerge_kit.method import Coefficient, Equivariant, Method, Params
from robustmerge_kit.orthonormal import Basis


def make(
    ranks: Sequence[int] = (4, 4, 4),
    d_out: int = 40,
    d_in: int = 32,
    *,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    batch: tuple[int, ...] = (),
) -> FactorStack:
    """Gaussian factors with decaying columns of B, as after training; coefficient = weight * scale."""
    draw = torch.Generator().manual_seed(seed)
    weights = tuple(weights or [1.0] * len(ranks))
    scales = tuple(scales or [2.0] * len(ranks))
    decay = [torch.logspace(0, -1, r, dtype=torch.float64) for r in ranks]
    a = [torch.randn(*batch, r, d_in, generator=draw, dtype=torch.float64) for r in ranks]
    b = [
        0.1 * torch.randn(*batch, d_out, r, generator=draw, dtype=torch.float64) * s for r, s in zip(ranks, decay, strict=True)
    ]
    coefficients = tuple(w * s for w, s in zip(weights, scales, strict=True))
    return FactorStack(tuple(x.to(dtype) for x in a), tuple(x.to(dtype) for x in b), coefficients, Weights.of(weights))


def replaced(stack: FactorStack, a: Sequence[Tensor] | None = None, b: Sequence[Tensor] | None = None) -> FactorStack:
    return replace(stack, a=tuple(a or stack.a), b=tuple(b or stack.b))


def duplicates(n: int = 4, r: int = 5, **options: object) -> FactorStack:
    """n copies of one adapter with unequal weights."""
    stack = make([r] * n, weights=[0.5 + 0.7 * t for t in range(n)], **options)  # type: ignore[arg-type]
    return replaced(stack, [stack.a[0]] * n, [stack.b[0]] * n)


def shared_a(n: int = 4, r: int = 5, **options: object) -> FactorStack:
    """One frozen A, n different B."""
    stack = make([r] * n, weights=[0.5 + 0.7 * t for t in range(n)], **options)  # type: ignore[arg-type]
    return replaced(stack, [stack.a[0]] * n)


def steep(**options: object) -> FactorStack:
    """Shared A, and singular values of every delta that fall over three decades."""
    stack = shared_a(**options)  # type: ignore[arg-type]
    fall = torch.logspace(0, -2, stack.ranks[0])
    return replaced(stack, b=[x * fall.to(x) for x in stack.b])


def weak_rows(**options: object) -> FactorStack:
    """A zero row of A, a zero column of B, and a row 1e-4 of the others."""
    stack = make((4, 5, 4), **options)  # type: ignore[arg-type]
    a, b = [x.clone() for x in stack.a], [x.clone() for x in stack.b]
    a[0][..., 1, :] = 0
    b[1][..., :, 2] = 0
    a[2][..., 0, :] *= 1e-4
    return replaced(stack, a, b)


CASES: dict[str, Callable[[], FactorStack]] = {
    "one": lambda: make([6]),
    "two": lambda: make([4, 4], seed=2),
    "equal ranks": lambda: make([4] * 5),
    "eight": lambda: make([2] * 8, seed=3),
    "unequal ranks": lambda: make([1, 7, 3, 2], weights=[1.0, 0.5, 2.0, 1.5], scales=[2.0, 1.0, 0.5, 4.0]),
    "sum of ranks above d": lambda: make([6] * 6, 24, 20, weights=[1.0, 0.6, 0.8, 1.3, 0.9, 1.1]),
    "sum of ranks above d_in only": lambda: make([6] * 4, 48, 20),
    "rank equals d": lambda: make([12, 12], 12, 40),
    "duplicates": duplicates,
    "duplicates above d": lambda: duplicates(6, 6, d_out=24, d_in=20),
    "shared A": shared_a,
    "steep shared A": steep,
    "weak rows": weak_rows,
    "tiny": lambda: make([4, 3, 5], scales=[1e-4] * 3),
    "huge": lambda: make([4, 3, 5], scales=[1e4] * 3),
    "one negative weight": lambda: make([4, 4, 4], weights=[1.0, -0.6, 0.8]),
    "bfloat16": lambda: make([4, 4, 4], dtype=torch.bfloat16, seed=5),
    "float16": lambda: make([4, 2, 4], dtype=torch.float16, seed=6),
    "float64": lambda: make([5, 3, 4], dtype=torch.float64, seed=7),
    "float64 pair": lambda: make([5, 3], dtype=torch.float64, weights=[1.0, -0.4], seed=7),
    "float64 above d": lambda: make([6] * 5, 24, 20, dtype=torch.float64, seed=8),
    "float64 duplicates": lambda: duplicates(3, 4, dtype=torch.float64),
    "float64 shared A": lambda: shared_a(3, 4, dtype=torch.float64),
}
"""Stacks every method must handle; none holds a zero delta."""


def deltas(stack: FactorStack) -> list[Tensor]:
    """D_t as dense float64 matrices."""
    return [c * b.double() @ a.double() for a, b, c in zip(stack.a, stack.b, stack.coefficients, strict=True)]


def merge(method: Method, stack: FactorStack, params: Params) -> LowRank | InCore:
    """What the pipeline does with a coefficient or an equivariant method, without steps or a rank cut."""
    if isinstance(method, Coefficient):
        products = rowwise_gram(stack) if method.rowwise(params) else gram(stack)
        return concat(stack, method.merge(products, stack.weights, params))
    assert isinstance(method, Equivariant)
    shared = core(stack)
    return InCore(shared, method.merge(shared, stack.weights, params))


def dense(delta: LowRank | InCore | Spectral) -> Tensor:
    """The delta multiplied out in float64."""
    if isinstance(delta, LowRank):
        return delta.b.double() @ delta.a.double()
    if isinstance(delta, InCore):
        return delta.core.q_b.double() @ delta.matrix @ delta.core.q_a.double().mT
    return delta.q_b.double() @ (delta.u * delta.s[..., None, :]) @ (delta.q_a.double() @ delta.v).mT


def merged(method: Method, stack: FactorStack, params: Params) -> Tensor:
    return dense(merge(method, stack, params))


def difference(x: Tensor, y: Tensor) -> float:
    """Relative Frobenius error of x against y; 0 for two zero matrices."""
    size = torch.linalg.matrix_norm(y)
    error = torch.linalg.matrix_norm(x - y)
    return float((error / size.clamp_min(1e-300)).max()) if error.any() else 0.0


def plain_core(cores: Tensor, eps: float = 2.0**-52) -> Core:
    """A core made of given matrices: the bases are unit matrices, so dense and core are the same thing."""
    rows, columns = cores.shape[1:]
    eye = torch.eye(columns, dtype=torch.float64)
    pieces = [torch.linalg.qr(m) for m in cores]
    r_b = torch.cat([q for q, _ in pieces], -1)
    r_a = torch.cat([r.mT for _, r in pieces], -1)
    return Core(
        Basis.of(torch.eye(rows, dtype=torch.float64)), Basis.of(eye), r_b, r_a, tuple(q.shape[-1] for q, _ in pieces), eps
    )

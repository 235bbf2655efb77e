"""Merge methods on dense float64 deltas, one adapter and one entry at a time where that is clearest.

Written from the definitions of the methods, not from the code they judge: nothing of the package is imported. A matrix stands
for one adapter's weighted delta, or for the same delta in orthonormal bases that all of them share. Deltas that are zero are
given only to methods that declare a mean over all adapters.

cut: singular values of at most this share of the largest are taken for rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
CUT = 1e-9


def svd(x: Matrix, cut: float = CUT, least: float = 0.0) -> tuple[Matrix, Matrix, Matrix]:
    """U, S, V of the values above `cut` times the largest, and above `least`."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    k = int((s > max(cut * s[0], least)).sum()) if s[0] > 0 else 0
    return u[:, :k], s[:k], vt[:k].T


def polar(x: Matrix, cut: float = CUT) -> Matrix:
    u, _, v = svd(x, cut)
    return u @ v.T


def norm(x: Matrix) -> float:
    return float(np.linalg.norm(x))


def unit(x: Matrix) -> Matrix:
    """The matrix at norm 1; zero stays zero."""
    return x / norm(x) if norm(x) else x


def added(d: Sequence[Matrix]) -> Matrix:
    return sum(d[1:], d[0].copy())


# --- weighted combinations ----------------------------------------------------------------------------------------------


def linear(d: Sequence[Matrix], w: Sequence[float], normalize: bool = True, gain: float = 1.0) -> Matrix:
    return gain * added(d) / (sum(w) if normalize else 1.0)


def task_arithmetic(d: Sequence[Matrix], w: Sequence[float], normalize: bool = False, gain: float = 1.0) -> Matrix:
    return linear(d, w, normalize, gain)


def slerp(d: Sequence[Matrix], w: Sequence[float], t: float) -> Matrix:
    first, second = d
    cos = float((unit(first) * unit(second)).sum())
    if abs(cos) > 0.9995:
        return (1 - t) * first + t * second
    theta = math.acos(cos)
    return (math.sin((1 - t) * theta) * first + math.sin(t * theta) * second) / math.sin(theta)


def nuslerp(d: Sequence[Matrix], w: Sequence[float]) -> Matrix:
    first, second = d[0] / w[0], d[1] / w[1]
    t = w[1] / (w[0] + w[1]) if w[0] + w[1] else 0.5
    cos = float((unit(first) * unit(second)).sum())
    if 1 - cos**2 <= 1e-15:
        return (1 - t) * first + t * second
    theta = math.acos(cos)
    return (math.sin((1 - t) * theta) * first + math.sin(t * theta) * second) / math.sin(theta)


def multislerp(d: Sequence[Matrix], w: Sequence[float], normalize_weights: bool = True) -> Matrix:
    if len(d) == 1:
        return d[0] / w[0]
    total = sum(w) if normalize_weights else 1.0
    a = [x / total for x in w]
    plain = [x / y for x, y in zip(d, w, strict=True)]
    each = [unit(x) for x in plain]
    mean = added([x * e for x, e in zip(a, each, strict=True)])
    if norm(mean) < 1e-8 and len(d) == 2:
        return added([x * p for x, p in zip(a, plain, strict=True)])
    mu = unit(mean)
    tangent = added([x * (e - (e * mu).sum() * mu) for x, e in zip(a, each, strict=True)])
    tau = norm(tangent)
    length = sum(x * norm(p) for x, p in zip(a, plain, strict=True))
    return length * (math.cos(tau) * mu + (math.sin(tau) / tau if tau else 1.0) * tangent)


def karcher(d: Sequence[Matrix], w: Sequence[float], max_iter: int = 10, tol: float = 1e-5) -> Matrix:
    a = [x / sum(w) for x in w]
    plain = [x / y for x, y in zip(d, w, strict=True)]
    there = [(x, unit(p)) for x, p in zip(a, plain, strict=True) if norm(p)]
    share = sum(x for x, _ in there)
    each = [(x / share, e) for x, e in there]
    mean = added([x * e for x, e in each])
    mu = unit(mean) if norm(mean) >= tol else each[0][1]
    for _ in range(max_iter):
        tangent = np.zeros_like(mu)
        for x, e in each:
            cos = min(1.0, max(-1.0, float((mu * e).sum())))
            theta = math.acos(cos)
            if theta >= tol:
                tangent += x * theta / math.sin(theta) * (e - cos * mu)
        step = norm(tangent)
        if step < tol:
            break
        mu = unit(math.cos(step) * mu + math.sin(step) * tangent / step)
    return sum(x * norm(p) for x, p in zip(a, plain, strict=True)) * mu


def model_stock(d: Sequence[Matrix], w: Sequence[float], filter_wise: bool = False) -> Matrix:
    if filter_wise:
        return np.concatenate([model_stock([x[i : i + 1] for x in d], w) for i in range(len(d[0]))])
    n = len(d)
    cosines = [float((unit(x) * unit(y)).sum()) for x, y in itertools.combinations(d, 2)]
    c = sum(cosines) / len(cosines)
    below = 1 + (n - 1) * c
    t = n * c / below if abs(below) >= 1e-6 else 0.0
    return t / n * added(d)


# --- methods of the singular values and vectors -------------------------------------------------------------------------


def tsv_m(
    d: Sequence[Matrix], w: Sequence[float], rank_per_adapter: int | None = None, gain: float = 1.0, cut: float = CUT
) -> Matrix:
    k = rank_per_adapter
    us, ss, vs = zip(*[svd(x, cut) for x in d], strict=True)
    u, v = np.hstack([x[:, :k] for x in us]), np.hstack([x[:, :k] for x in vs])
    return gain * polar(u, cut) @ np.diag(np.concatenate([s[:k] for s in ss])) @ polar(v, cut).T


def iso_c(
    d: Sequence[Matrix],
    w: Sequence[float],
    mean_over: str = "rank",
    gain: float = 1.0,
    cut: float = CUT,
    shape: tuple[int, int] | None = None,
) -> Matrix:
    u, s, v = svd(added(d), cut)
    return gain * s.sum() / (len(s) if mean_over == "rank" else min(shape or d[0].shape)) * u @ v.T


def iso_cts(
    d: Sequence[Matrix],
    w: Sequence[float],
    total_rank: int,
    common_fraction: float = 0.8,
    rank: int | None = None,
    directions_per_adapter: int | None = None,
    gain: float = 1.0,
    cut: float = CUT,
) -> Matrix:
    n, (u, s, v) = len(d), svd(added(d), cut)
    k = min(rank, total_rank, *d[0].shape) if rank else len(s)
    p = round((k - int(k * common_fraction)) / n) if directions_per_adapter is None else directions_per_adapter
    if k - n * p < 1:
        p = (k - 1) // n
    common = k - n * p
    us, ss, vs = [u[:, :common]], [s[:common]], [v[:, :common]]
    for x in d:
        rest = x - us[0] @ us[0].T @ x
        left, values, right = svd(rest, cut, cut * float(np.linalg.norm(x, 2)))
        us.append(left[:, :p])
        ss.append(values[:p])
        vs.append(right[:, :p])
    return gain * np.concatenate(ss).mean() * polar(np.hstack(us), cut) @ polar(np.hstack(vs), cut).T


def wudi(d: Sequence[Matrix], w: Sequence[float], gain: float = 1.0, cut: float = CUT) -> Matrix:
    # A stacked least-squares problem: D (D_t / ||D_t||)^T = D_t (D_t / ||D_t||)^T for all t, solved without squaring it.
    x = np.vstack([m / norm(m) for m in d]).T
    y = np.hstack([m @ m.T / norm(m) for m in d])
    return gain * y @ np.linalg.pinv(x, rcond=cut)


def swudi(
    d: Sequence[Matrix],
    w: Sequence[float],
    dim: int,
    filter: str | None = None,  # noqa: A002 - the name that a recipe uses
    exp_time: float = 300.0,
    keep_fraction: float = 0.65,
    adaptive: bool = False,
    init: str = "sum",
    gain: float = 1.0,
) -> Matrix:
    grams = [x.T @ x / (x * x).sum() for x in d]
    e, v = np.linalg.eigh(added(grams))
    e, v = np.maximum(e[::-1][:dim], 1e-8), v[:, ::-1][:, :dim]
    target = added([x @ g for x, g in zip(d, grams, strict=True)])
    if adaptive:
        k = min(max(math.ceil(np.sqrt(e).sum() ** 2 / e.sum()), 1), dim)
    else:
        k = max(1, math.floor(dim * keep_fraction + 0.999))
    kind = filter or ("none" if adaptive else "exponential")
    f = np.ones_like(e) if kind == "none" else 1 - np.exp(-e * exp_time)
    f[k:] = 0
    start = {"sum": added(d), "mean": added(d) / len(d), "zero": np.zeros_like(d[0])}[init]
    return gain * (start - start @ v @ np.diag(f) @ v.T + target @ v @ np.diag(f / e) @ v.T)


def dc_merge(
    d: Sequence[Matrix],
    w: Sequence[float],
    smoothing: str = "mean",
    rho: float = 5.0,
    keep_fraction: float = 0.001,
    keep_per_adapter: int | str | None = None,
    gain: float = 1.0,
    cut: float = CUT,
) -> Matrix:
    triples = [svd(x, cut) for x in d]
    p, q = polar(np.hstack([t[0] for t in triples]), cut), polar(np.hstack([t[2] for t in triples]), cut)
    size = p.shape[1]
    kept: list[Matrix] = []
    for u, s, v in triples:
        r = len(s)
        slope = np.ones(r) if smoothing == "mean" else np.linspace(min(rho, s[0] / s[-1]), 1, r)
        c = p.T @ u @ np.diag(s.sum() * slope / slope.sum()) @ v.T @ q
        if keep_per_adapter is None:
            k = max(1, int(keep_fraction * size**2))
        else:
            k = r if isinstance(keep_per_adapter, str) else keep_per_adapter
        threshold = np.sort(np.abs(c).ravel())[::-1][min(k, c.size) - 1]
        kept.append(np.where(np.abs(c) >= threshold * (1 - CUT), c, 0.0))
    owner = np.array([t for t, (_, s, _) in enumerate(triples) for _ in s])
    total = added(kept)
    same = [np.where(c * total > 0, c, 0.0) for c in kept]
    count = np.maximum(1, added([(x != 0).astype(np.float64) for x in same]))
    merged = np.where(owner[:, None] == owner, added(same) / count, 0.0)
    return gain * p @ merged @ q.T


def star(d: Sequence[Matrix], w: Sequence[float], eta: float = 40.0, gain: float = 1.0, cut: float = CUT) -> Matrix:
    total = np.zeros_like(d[0])
    for x in d:
        u, s, v = svd(x, cut)
        if len(s):
            k = min(sum(s[: j + 1].sum() < eta / 100 * s.sum() for j in range(len(s))) + 1, len(s))
            total += u[:, :k] @ np.diag(s[:k] * s.sum() / s[:k].sum()) @ v[:, :k].T
    return gain / len(d) * total


# --- steps after the method ---------------------------------------------------------------------------------------------


def svc(merged: Matrix, d: Sequence[Matrix], alpha: float = 1.0, cut: float = CUT) -> Matrix:
    u, s, v = svd(merged, cut)
    out = np.zeros_like(merged)
    for j in range(len(s)):
        a = s[j] * v[:, j]
        total = 0.0
        for x in d:
            row = u[:, j] @ x
            small = norm(row) <= cut * norm(x)
            total += max(alpha, alpha if small else float(a @ row) / float(row @ row))
        out += s[j] * len(d) / total * np.outer(u[:, j], v[:, j])
    return out


def subspace_boost(merged: Matrix, beta: float, cut: float = CUT) -> Matrix:
    u, s, v = svd(merged, cut)
    if not len(s):
        return merged
    first = next((j for j in range(len(s)) if s[: j + 1].sum() >= beta * s.sum()), len(s) - 1)
    return u @ np.diag(np.maximum(s, s[first])) @ v.T


def rescale_output(merged: Matrix, d: Sequence[Matrix], to: str | float) -> Matrix:
    sizes = [norm(x) for x in d]
    measures = {"mean_norm": np.mean, "max_norm": np.max, "median_norm": np.median}
    return unit(merged) * (float(measures[to](sizes)) if isinstance(to, str) else to)


COMBINATIONS: dict[str, Callable[..., Matrix]] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "cat": task_arithmetic,
    "svd": task_arithmetic,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
}
"""Coefficient methods; zero deltas count in them."""

SPECTRAL: dict[str, Callable[..., Matrix]] = {f.__name__: f for f in (tsv_m, iso_c, iso_cts, wudi, swudi, dc_merge, star)}
"""Equivariant methods; of these, zero deltas count in `star` alone."""

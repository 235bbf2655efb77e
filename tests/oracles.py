"""Merge methods on dense float64 deltas, one adapter and one entry at a time where that is clearest.

Written from the definitions of the methods, not from the code they judge: nothing of the package is imported. Ranks are cut
where values are below 1e-9 of the largest, far from the directions and from the rounding noise of the test stacks.
"""

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
CUT = 1e-9


def svd(x: Matrix, cut: float | None = None) -> tuple[Matrix, Matrix, Matrix]:
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    k = int((s > (CUT * s[0] if cut is None else cut)).sum()) if s[0] > 0 else 0
    return u[:, :k], s[:k], vt[:k].T


def polar(x: Matrix) -> Matrix:
    u, _, v = svd(x)
    return u @ v.T


def slerp(d: list[Matrix], w: list[float], t: float) -> Matrix:
    first, second = d
    cos = (first * second).sum() / (np.linalg.norm(first) * np.linalg.norm(second))
    if abs(cos) > 0.9995:
        return (1 - t) * first + t * second
    theta = math.acos(cos)
    return (math.sin((1 - t) * theta) * first + math.sin(t * theta) * second) / math.sin(theta)


def nuslerp(d: list[Matrix], w: list[float]) -> Matrix:
    first, second = d[0] / w[0], d[1] / w[1]
    t = w[1] / (w[0] + w[1]) if w[0] + w[1] else 0.5
    cos = (first * second).sum() / (np.linalg.norm(first) * np.linalg.norm(second))
    if 1 - cos**2 <= 1e-15:
        return (1 - t) * first + t * second
    theta = math.acos(cos)
    return (math.sin((1 - t) * theta) * first + math.sin(t * theta) * second) / math.sin(theta)


def multislerp(d: list[Matrix], w: list[float], normalize_weights: bool = True) -> Matrix:
    total = sum(w) if normalize_weights else 1.0
    a = [x / total for x in w]
    plain = [x / y for x, y in zip(d, w, strict=True)]
    unit = [x / np.linalg.norm(x) for x in plain]
    mean = sum(x * e for x, e in zip(a, unit, strict=True))
    mu = mean / np.linalg.norm(mean)
    tangent = sum(x * (e - (e * mu).sum() * mu) for x, e in zip(a, unit, strict=True))
    tau = float(np.linalg.norm(tangent))
    length = sum(x * np.linalg.norm(p) for x, p in zip(a, plain, strict=True))
    return length * (math.cos(tau) * mu + (math.sin(tau) / tau if tau else 1.0) * tangent)


def karcher(d: list[Matrix], w: list[float], max_iter: int = 10, tol: float = 1e-5) -> Matrix:
    a = [x / sum(w) for x in w]
    plain = [x / y for x, y in zip(d, w, strict=True)]
    unit = [x / np.linalg.norm(x) for x in plain]
    mean = sum(x * e for x, e in zip(a, unit, strict=True))
    mu = mean / np.linalg.norm(mean) if np.linalg.norm(mean) >= tol else unit[0]
    for _ in range(max_iter):
        tangent = np.zeros_like(mu)
        for x, e in zip(a, unit, strict=True):
            cos = min(1.0, max(-1.0, float((mu * e).sum())))
            theta = math.acos(cos)
            if theta >= tol:
                tangent += x * theta / math.sin(theta) * (e - cos * mu)
        step = float(np.linalg.norm(tangent))
        if step < tol:
            break
        mu = math.cos(step) * mu + math.sin(step) * tangent / step
        mu /= np.linalg.norm(mu)
    return sum(x * np.linalg.norm(p) for x, p in zip(a, plain, strict=True)) * mu


def model_stock(d: list[Matrix], w: list[float], filter_wise: bool = False) -> Matrix:
    if filter_wise:
        return np.concatenate([model_stock([x[i : i + 1] for x in d], w) for i in range(len(d[0]))])
    n = len(d)
    cosines = []
    for x, y in itertools.combinations(d, 2):
        size = np.linalg.norm(x) * np.linalg.norm(y)
        cosines.append((x * y).sum() / size if size else 0.0)
    c = sum(cosines) / len(cosines)
    below = 1 + (n - 1) * c
    t = n * c / below if abs(below) >= 1e-6 else 0.0
    return t / n * sum(d)


def tsv_m(d: list[Matrix], w: list[float], rank_per_adapter: int | None = None, gain: float = 1.0) -> Matrix:
    k = rank_per_adapter
    us, ss, vs = zip(*[svd(x) for x in d], strict=True)
    u, v = np.hstack([x[:, :k] for x in us]), np.hstack([x[:, :k] for x in vs])
    return gain * polar(u) @ np.diag(np.concatenate([s[:k] for s in ss])) @ polar(v).T


def iso_c(d: list[Matrix], w: list[float], mean_over: str = "rank", gain: float = 1.0) -> Matrix:
    u, s, v = svd(sum(d))
    return gain * s.sum() / (len(s) if mean_over == "rank" else min(d[0].shape)) * u @ v.T


def iso_cts(
    d: list[Matrix],
    w: list[float],
    total_rank: int,
    common_fraction: float = 0.8,
    rank: int | None = None,
    directions_per_adapter: int | None = None,
    gain: float = 1.0,
) -> Matrix:
    n, (u, s, v) = len(d), svd(sum(d))
    k = min(rank, total_rank, *d[0].shape) if rank else len(s)
    p = round((k - int(k * common_fraction)) / n) if directions_per_adapter is None else directions_per_adapter
    if k - n * p < 1:
        p = (k - 1) // n
    common = k - n * p
    us, ss, vs = [u[:, :common]], [s[:common]], [v[:, :common]]
    for x in d:
        rest = x - us[0] @ us[0].T @ x
        left, values, right = svd(rest, CUT * np.linalg.norm(x, 2))
        us.append(left[:, :p])
        ss.append(values[:p])
        vs.append(right[:, :p])
    return gain * np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.hstack(vs)).T


def wudi(d: list[Matrix], w: list[float], gain: float = 1.0) -> Matrix:
    # A stacked least-squares problem: D (D_t / ||D_t||)^T = D_t (D_t / ||D_t||)^T for all t, solved without squaring it.
    x = np.vstack([m / np.linalg.norm(m) for m in d]).T
    y = np.hstack([m @ m.T / np.linalg.norm(m) for m in d])
    return gain * y @ np.linalg.pinv(x, rcond=CUT)


def swudi(
    d: list[Matrix],
    w: list[float],
    dim: int,
    filter: str | None = None,  # noqa: A002
    exp_time: float = 300.0,
    keep_fraction: float = 0.65,
    adaptive: bool = False,
    init: str = "sum",
    gain: float = 1.0,
) -> Matrix:
    grams = [x.T @ x / (x * x).sum() for x in d]
    e, v = np.linalg.eigh(sum(grams))
    e, v = np.maximum(e[::-1][:dim], 1e-8), v[:, ::-1][:, :dim]
    target = sum(x @ g for x, g in zip(d, grams, strict=True))
    if adaptive:
        k = min(max(math.ceil(np.sqrt(e).sum() ** 2 / e.sum()), 1), dim)
    else:
        k = max(1, math.floor(dim * keep_fraction + 0.999))
    kind = filter or ("none" if adaptive else "exponential")
    f = np.ones_like(e) if kind == "none" else 1 - np.exp(-e * exp_time)
    f[k:] = 0
    start = {"sum": sum(d), "mean": sum(d) / len(d), "zero": np.zeros_like(d[0])}[init]
    return gain * (start - start @ v @ np.diag(f) @ v.T + target @ v @ np.diag(f / e) @ v.T)


def dc_merge(
    d: list[Matrix],
    w: list[float],
    smoothing: str = "mean",
    rho: float = 5.0,
    keep_fraction: float = 0.001,
    keep_per_adapter: Any = None,
    gain: float = 1.0,
) -> Matrix:
    triples = [svd(x) for x in d]
    p, q = polar(np.hstack([t[0] for t in triples])), polar(np.hstack([t[2] for t in triples]))
    size = p.shape[1]
    kept = []
    for u, s, v in triples:
        r = len(s)
        slope = np.ones(r) if smoothing == "mean" else np.linspace(min(rho, s[0] / s[-1]), 1, r)
        c = p.T @ u @ np.diag(s.sum() * slope / slope.sum()) @ v.T @ q
        k = (
            max(1, int(keep_fraction * size**2))
            if keep_per_adapter is None
            else r
            if keep_per_adapter == "r"
            else keep_per_adapter
        )
        threshold = np.sort(np.abs(c).ravel())[::-1][min(k, c.size) - 1]
        kept.append(np.where(np.abs(c) >= threshold * (1 - CUT), c, 0.0))
    owner = [t for t, (_, s, _) in enumerate(triples) for _ in s]
    merged = np.zeros((size, size))
    for i, j in itertools.product(range(size), repeat=2):
        entries = [c[i, j] for c in kept]
        same = [x for x in entries if x * sum(entries) > 0]
        if same and owner[i] == owner[j]:
            merged[i, j] = sum(same) / len(same)
    return gain * p @ merged @ q.T


def star(d: list[Matrix], w: list[float], eta: float = 40.0, gain: float = 1.0) -> Matrix:
    total = np.zeros_like(d[0])
    for x in d:
        u, s, v = svd(x)
        k = min(sum(s[: j + 1].sum() < eta / 100 * s.sum() for j in range(len(s))) + 1, len(s))
        total += u[:, :k] @ np.diag(s[:k] * s.sum() / s[:k].sum()) @ v[:, :k].T
    return gain / len(d) * total


def svc(merged: Matrix, d: list[Matrix], alpha: float = 1.0) -> Matrix:
    u, s, v = svd(merged)
    out = np.zeros_like(merged)
    for j in range(len(s)):
        a = s[j] * v[:, j]
        total = 0.0
        for x in d:
            row = u[:, j] @ x
            small = np.linalg.norm(row) <= CUT * np.linalg.norm(x)
            total += max(alpha, alpha if small else float(a @ row) / float(row @ row))
        out += s[j] * len(d) / total * np.outer(u[:, j], v[:, j])
    return out


def subspace_boost(merged: Matrix, beta: float) -> Matrix:
    u, s, v = svd(merged)
    first = next(j for j in range(len(s)) if s[: j + 1].sum() >= beta * s.sum())
    return u @ np.diag(np.maximum(s, s[first])) @ v.T

"""Each element-wise method once more, entry by entry in float64, from the formulas alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def sgn(x: float) -> float:
    return 1.0 if x >= 0 else -1.0


def by_magnitude(x: Array) -> list[int]:
    """Flat indices, largest magnitude first, equal ones by lower index."""
    return sorted(range(x.size), key=lambda i: (-abs(x.flat[i]), i))


def trimmed(x: Array, density: float, trim: str = "topk") -> Array:
    out = np.zeros_like(x)
    if trim == "topk":
        for i in by_magnitude(x)[: max(1, int(density * x.size))]:
            out.flat[i] = x.flat[i]
        return out
    k = x.size - int(density * x.size)
    least = -1.0 if k == 0 else sorted(abs(x.flat[i]) for i in range(x.size))[k - 1]
    for i in range(x.size):
        out.flat[i] = x.flat[i] if abs(x.flat[i]) >= least else 0.0
    return out


def elected(xs: Sequence[Array], weights: Sequence[float], normalize: bool) -> Array:
    out = np.zeros_like(xs[0])
    for i in range(out.size):
        sign = sgn(sum(x.flat[i] for x in xs))
        agreeing = [t for t, x in enumerate(xs) if x.flat[i] * sign > 0]
        total = sum(xs[t].flat[i] for t in agreeing)
        out.flat[i] = total / sum(abs(weights[t]) for t in agreeing) if normalize and agreeing else total
    return out


def added(xs: Sequence[Array], weights: Sequence[float], normalize: bool) -> Array:
    return sum(xs, np.zeros_like(xs[0])) / (sum(weights) if normalize else 1.0)


def ties(xs, weights, draws, *, density=1.0, normalize=True, trim="topk", gain=1.0) -> Array:
    return gain * elected([trimmed(x, density, trim) for x in xs], weights, normalize)


def magnitude_prune(xs, weights, draws, *, density, normalize=False, gain=1.0) -> Array:
    return gain * added([trimmed(x, density) for x in xs], weights, normalize)


def dropped(xs, draws, probability: Callable[[Array, int], Array], purpose: str, rescale: str) -> list[Array]:
    out = []
    for t, x in enumerate(xs):
        p, u = probability(x, t), draws(t, purpose, x)
        kept = np.where(u < p.astype(np.float32), x, 0.0)
        if rescale == "inverse":
            kept = kept / p
        before, after = np.abs(x).sum(), np.abs(kept).sum()
        if rescale == "l1" and before > 0 and after > 0:
            kept = kept * before / after
        out.append(kept)
    return out


def dare(xs, draws, density, rescale) -> list[Array]:
    return dropped(xs, draws, lambda x, t: np.full_like(x, density), "dare drop", rescale)


def dare_linear(xs, weights, draws, *, density, rescale="inverse", normalize=False, gain=1.0) -> Array:
    return gain * added(dare(xs, draws, density, rescale), weights, normalize)


def dare_ties(xs, weights, draws, *, density, ties_density=1.0, rescale="inverse", normalize=False, gain=1.0) -> Array:
    return gain * elected([trimmed(x, ties_density) for x in dare(xs, draws, density, rescale)], weights, normalize)


def keep_probability(x: Array, density: float, epsilon: float) -> Array:
    p = np.full_like(x, density)
    if density == 1 or x.shape[1] == 1:
        return p
    for i, row in enumerate(x):
        places = sorted(range(len(row)), key=lambda j: (abs(row[j]), j))
        for place, j in enumerate(places):
            p[i, j] = density - epsilon + 2 * epsilon * place / (len(row) - 1)
    return p


def della(xs, weights, draws, *, density, epsilon=0.15, rescale="inverse", normalize=True, gain=1.0) -> Array:
    kept = dropped(xs, draws, lambda x, t: keep_probability(x, density, epsilon), "della drop", rescale)
    return gain * elected(kept, weights, normalize)


def della_linear(xs, weights, draws, *, density, epsilon=0.15, rescale="inverse", normalize=False, gain=1.0) -> Array:
    kept = dropped(xs, draws, lambda x, t: keep_probability(x, density, epsilon), "della drop", rescale)
    return gain * added(kept, weights, normalize)


def without_outliers(x: Array, density: float, gamma: float) -> Array:
    keep, top = int(density * x.size), int(gamma * x.size)
    bottom = max(0, x.size - keep - top)
    order = sorted(range(x.size), key=lambda i: (abs(x.flat[i]), i))
    out = np.zeros_like(x)
    for i in order[bottom : bottom + keep]:
        out.flat[i] = x.flat[i]
    return out


def breadcrumbs(xs, weights, draws, *, density=1.0, gamma=0.01, normalize=False, gain=1.0) -> Array:
    return gain * added([without_outliers(x, density, gamma) for x in xs], weights, normalize)


def breadcrumbs_ties(xs, weights, draws, *, density=1.0, gamma=0.01, normalize=False, gain=1.0) -> Array:
    return gain * elected([without_outliers(x, density, gamma) for x in xs], weights, normalize)


def sce(xs, weights, draws, *, density=1.0, gain=1.0) -> Array:
    variance = np.zeros_like(xs[0])
    for i in range(variance.size):
        values = [x.flat[i] for x in xs]
        mean = sum(values) / len(values)
        variance.flat[i] = 0.0 if len(set(values)) == 1 else sum((v - mean) ** 2 for v in values) / len(values)
    selected = [x.copy() for x in xs]
    if density < 1:
        chosen = set(by_magnitude(variance)[: int(density * np.count_nonzero(variance))])
        for x in selected:
            for i in range(x.size):
                x.flat[i] = x.flat[i] if i in chosen else 0.0
    share = [float((x**2).mean()) for x in selected]
    out = np.zeros_like(xs[0])
    for i in range(out.size):
        sign = sgn(sum(x.flat[i] for x in selected))
        agreeing = [t for t, x in enumerate(selected) if x.flat[i] * sign > 0]
        mass = sum(share[t] for t in agreeing)
        out.flat[i] = sum(share[t] * selected[t].flat[i] for t in agreeing) / mass if mass else 0.0
    return gain * out


def pcb(xs, weights, draws, *, density=0.1, clamp_tail=1e-4, gain=1.0) -> Array:
    def clamped(x: Array, low: float, high: float) -> Array:
        ranked, n = sorted(x.flat), x.size
        bottom = ranked[min(max(int(n * low), 0), n - 1)]
        top = ranked[min(max(int(n * (1 - high) - 1), 0), n - 1)]
        return np.minimum(np.maximum(x, bottom), top)

    def norm01(x: Array) -> Array:
        return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else np.zeros_like(x)

    total = sum(xs, np.zeros_like(xs[0]))
    up, down = np.zeros_like(total), np.zeros_like(total)
    for x in xs:
        size = clamped(np.abs(x), clamp_tail, clamp_tail)
        score = np.exp(len(xs) * norm01(size) ** 2) * np.tanh(x * total)
        z = norm01(clamped(score, 1 - density, 0))
        up, down = up + z * np.sign(x) * size, down + z
    return gain * up / np.maximum(down, 1e-12)


def emr(xs, weights, draws, *, gain=1.0) -> Array:
    out = np.zeros_like(xs[0])
    for i in range(out.size):
        sign = sgn(sum(x.flat[i] for x in xs))
        out.flat[i] = sign * max((abs(x.flat[i]) for x in xs if x.flat[i] * sign > 0), default=0.0)
    return gain * out


def consensus(xs, weights, draws, *, tall_lambda=0.4, agree=2, gain=1.0) -> Array:
    out = np.zeros_like(xs[0])
    for i in range(out.size):
        total = gain * sum(x.flat[i] for x in xs)
        masks = sum(abs(x.flat[i]) > tall_lambda * abs(total - x.flat[i]) for x in xs)
        out.flat[i] = total if masks >= agree else 0.0
    return out


METHODS: dict[str, Callable[..., Array]] = {
    f.__name__: f
    for f in (
        ties,
        magnitude_prune,
        dare_linear,
        dare_ties,
        della,
        della_linear,
        breadcrumbs,
        breadcrumbs_ties,
        sce,
        pcb,
        emr,
        consensus,
    )
}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ties", {}),
    ("ties", {"density": 0.2}),
    ("ties", {"density": 0.37, "normalize": False, "gain": 0.6}),
    ("ties", {"density": 0.3, "trim": "kth"}),
    ("ties", {"density": 0.001}),
    ("ties", {"density": 0.001, "trim": "kth"}),
    ("magnitude_prune", {"density": 0.4}),
    ("magnitude_prune", {"density": 0.4, "normalize": True}),
    ("dare_linear", {"density": 0.5}),
    ("dare_linear", {"density": 0.5, "rescale": "l1", "normalize": True}),
    ("dare_linear", {"density": 0.5, "rescale": "none", "gain": 2.0}),
    ("dare_linear", {"density": 1.0, "rescale": "l1"}),
    ("dare_ties", {"density": 0.6}),
    ("dare_ties", {"density": 0.6, "ties_density": 0.3, "rescale": "l1", "normalize": True}),
    ("della", {"density": 0.5}),
    ("della", {"density": 0.6, "epsilon": 0.3, "rescale": "l1", "normalize": False}),
    ("della_linear", {"density": 0.5, "rescale": "none"}),
    ("della_linear", {"density": 1.0}),
    ("breadcrumbs", {}),
    ("breadcrumbs", {"density": 0.7, "gamma": 0.1}),
    ("breadcrumbs", {"density": 0.95, "gamma": 0.2, "normalize": True}),
    ("breadcrumbs", {"density": 0.001}),
    ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.05}),
    ("sce", {}),
    ("sce", {"density": 0.2, "gain": 1.5}),
    ("pcb", {}),
    ("pcb", {"density": 0.4, "clamp_tail": 0.05, "gain": 1.2}),
    ("pcb", {"density": 1.0}),
    ("emr", {}),
    ("emr", {"gain": 0.5}),
    ("consensus", {}),
    ("consensus", {"tall_lambda": 0.2, "agree": 1, "gain": 0.7}),
]
"""Methods and settings that cover every branch of the formulas."""
NAMES = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]

"""From a site's inputs and the recipe's settings to the merged delta that must be there, without any code of the merge."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..draws import KeyedDraws
from ..plan import SiteStep
from . import oracles
from .entries import Site, elementwise
from .expected import ByRows, Expected, Factored
from .oracles import Matrix
from .robust import robustmerge
from .stack import Stack

DENSE_SIDE = 256
"""Up to this shorter side singular vectors are those of the dense matrices; beyond, of the same matrices in the spans of the
factors, which is exact."""
COMBINED_SPREAD = 2e-5
SPECTRAL_SPREAD = 1e-4
"""Share of the delta's root mean square that coefficients and bases in float32 may add to an entry."""


@dataclass(frozen=True)
class Keys:
    """What keys random numbers: the recipe's seed, and an identity for every adapter of the recipe."""

    seed: int
    identities: Sequence[str]

    def draws(self, site: str, stack: Stack) -> KeyedDraws:
        return KeyedDraws.of(self.seed, site, [self.identities[place] for place in stack.places])


def expect(step: SiteStep, stack: Stack, keys: Keys, tile: int) -> Expected | None:
    """The merged delta before any rank cut; None where there is no implementation besides the method's own.

    tile: rows that are made at a time.
    """
    settings = step.params.model_dump()
    if settings.get("scope") == "global" or not _same_densities(step, stack):
        return None
    if not len(stack):
        return Factored(torch.zeros(step.model.d_out, 1).double(), torch.zeros(1, step.model.d_in).double(), coarse=False)
    norms = stack.norms(tile) if step.pre or step.post else []
    scaled = _pre(step, stack, norms)
    if scaled is None:
        return None
    merged = _merge(step, scaled, settings, keys, tile)
    if stack.remade and isinstance(merged, Factored):
        merged = merged.loosened()
    if not step.post or merged is None:
        return merged
    return _post(step, scaled, merged, scaled.norms(tile))


def _same_densities(step: SiteStep, stack: Stack) -> bool:
    """Whether settings given adapter by adapter can be told apart: their number is that of the site's members."""
    values = [value for value in step.params.model_dump().values() if isinstance(value, tuple)]
    return all(len(value) == len(step.members) for value in values)


# --- the method ---------------------------------------------------------------------------------------------------------


def _merge(step: SiteStep, stack: Stack, settings: dict[str, Any], keys: Keys, tile: int) -> Expected | None:
    name = step.method.name
    if step.method.kind == "coefficient" and step.space is None and name in oracles.COMBINATIONS:
        return _combination(name, stack, settings, tile)
    if step.method.kind == "equivariant" and name in oracles.SPECTRAL and stack.factored:
        return _spectral(name, stack, settings)
    if step.method.kind == "elementwise" and step.space is not None and step.space[0] == "full":
        draws = keys.draws(step.site, stack)

        def draw(t: int, purpose: str, row: int, like: torch.Tensor) -> torch.Tensor:
            return draws.at_row(row).uniform(t, purpose, like)

        total = sum(stack.weights) + sum(weight for _, weight in stack.absent)
        return elementwise(name, Site(stack, settings, draw, tile, total if settings.get("normalize") else None))
    if name == "robustmerge" and stack.factored and settings["criterion"] != "sign" and not _resplit(step):
        density = settings.pop("density")
        each = [density[t] for t in stack.members] if isinstance(density, tuple) else [density] * len(stack)
        draws = keys.draws(step.site, stack)
        return robustmerge(stack, draws.uniform, density=each, **settings)
    return None


def _resplit(step: SiteStep) -> bool:
    """Whether a step before the method splits deltas into factors anew, so that rounding decides what is pruned."""
    return any(pre.name in ("pico", "canonicalize") for pre, _ in step.pre)


def _combination(name: str, stack: Stack, settings: dict[str, Any], tile: int) -> Expected:
    total = sum(stack.weights) + sum(weight for _, weight in stack.absent)
    if oracles.COMBINATIONS[name] in (oracles.linear, oracles.task_arithmetic):
        factor = settings["gain"] / (total if settings["normalize"] else 1.0)
        if stack.factored:
            b = torch.cat([factor * c * x for c, x in zip(stack.c, stack.b, strict=True)], 1)
            a = torch.cat(stack.a)
            unit = 2.0**-22 if stack.coarse else 2.0**-48
            return Factored(b, a, noise_b=b.abs() * unit, noise_a=a.abs() * unit, coarse=stack.coarse)

        def added(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, int]:
            each = [(stack.rows(t, start, stop), stack.noise(t, start, stop)) for t in range(len(stack))]
            values, noise = (torch.stack(list(part)).sum(0) for part in zip(*each, strict=True))
            return factor * values, abs(factor) * 4 * noise, 0

        return ByRows(stack.shape, added)
    if settings.get("filter_wise"):
        return _filter_wise(stack, settings)
    oracle = oracles.COMBINATIONS[name]
    return _on_matrices(stack, lambda d, w: oracle(d, w, **_known(oracle, settings)), COMBINED_SPREAD)


def _filter_wise(stack: Stack, settings: dict[str, Any]) -> ByRows:
    def make(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        d = [stack.rows(t, start, stop).numpy() for t in range(len(stack))]
        d += [np.zeros_like(d[0])] * len(stack.absent)
        values = torch.from_numpy(oracles.model_stock(d, [1.0] * len(d), filter_wise=True))
        # The coefficient of a row hangs on its cosines, which float32 knows to 1e-5.
        noise = torch.stack([stack.rows(t, start, stop).abs() for t in range(len(stack))]).sum(0) * 1e-4
        return values, noise, 0

    return ByRows(stack.shape, make)


def _spectral(name: str, stack: Stack, settings: dict[str, Any]) -> Expected:
    oracle = oracles.SPECTRAL[name]
    d_out, d_in = stack.shape
    total = sum(len(a) for a in stack.a)
    cut = max(min(d_out, total), min(d_in, total)) * (2.0**-23 if stack.coarse else 2.0**-52)
    known = {**settings, "cut": max(cut, 1e-12), "shape": stack.shape, "dim": _input_rank(stack, cut), "total_rank": total}

    def merged(d: Sequence[Matrix], w: Sequence[float]) -> Matrix:
        return oracle(d, w, **_known(oracle, known))

    return _on_matrices(stack, merged, SPECTRAL_SPREAD, zeros=name == "star")


def _input_rank(stack: Stack, cut: float) -> int:
    """Numerical rank of [A_1; ..; A_n] with rows of length 1."""
    rows = torch.cat(stack.a)
    length = rows.norm(dim=1, keepdim=True)
    s = torch.linalg.svdvals(rows / torch.where(length > 0, length, 1.0))
    return int((s > cut * s[0]).sum())


def _known(oracle: Callable[..., Matrix], settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in inspect.signature(oracle).parameters}


def _on_matrices(
    stack: Stack, merge: Callable[[Sequence[Matrix], Sequence[float]], Matrix], spread: float, *, zeros: bool = True
) -> Factored:
    """An oracle on the dense deltas, or on the same in the spans of the factors; `zeros`: zero deltas are given to it too."""
    left, right, d = spans(stack)
    order = sorted([*zip(stack.places, stack.weights, d, strict=True)], key=lambda entry: entry[0])
    if zeros:
        order = sorted([*order, *((place, w, np.zeros_like(d[0])) for place, w in stack.absent)], key=lambda entry: entry[0])
    result = torch.from_numpy(merge([m for _, _, m in order], [w for _, w, _ in order]))
    return Factored(left @ result, right.T, spread, coarse=stack.coarse)


def spans(
    stack: Stack, more: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
) -> tuple[torch.Tensor, torch.Tensor, list[Matrix]]:
    """P, Q and matrices M_t with D_t = P M_t Q^T: unit matrices and the deltas themselves where they are small or depend on
    the base, else orthonormal bases of all columns of B and of all rows of A. `more`: factors b, a whose spans are included.
    """
    d_out, d_in = stack.shape
    if min(d_out, d_in) <= DENSE_SIDE or not stack.factored:
        dense = [stack.dense(t).numpy() for t in range(len(stack))]
        return torch.eye(d_out).double(), torch.eye(d_in).double(), dense
    left = _basis(torch.cat([*(c * b for c, b in zip(stack.c, stack.b, strict=True)), *(b for b, _ in more)], 1))
    right = _basis(torch.cat([*stack.a, *(a for _, a in more)]).T)
    small = [c * (left.T @ b) @ (a @ right) for c, b, a in zip(stack.c, stack.b, stack.a, strict=True)]
    return left, right, [m.numpy() for m in small]


def _basis(x: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns, each taken at unit length so that weak ones count."""
    length = x.norm(dim=0)
    u, s, _ = torch.linalg.svd(x[:, length > 0] / length[length > 0], full_matrices=False)
    return u[:, s > 1e-13 * s[0]]


# --- steps before and after ---------------------------------------------------------------------------------------------


def _pre(step: SiteStep, stack: Stack, norms: Sequence[float]) -> Stack | None:
    for pre, params in step.pre:
        settings = params.model_dump()
        if pre.name == "norm_balance":
            mean = statistics.fmean(norms)
            by = [settings["beta"] + (1 - settings["beta"]) * mean / m if m else 1.0 for m in norms]
        elif pre.name == "norm_cap":
            middle = statistics.median(norms)
            limit = middle + settings["k"] * statistics.median([abs(m - middle) for m in norms])
            by = [min(1.0, limit / m) if m else 1.0 for m in norms]
        elif pre.name == "canonicalize" and step.method.kind != "factor" and (step.space is None or step.space[0] == "full"):
            continue
        else:
            return None
        if not stack.factored:
            return None
        stack, norms = stack.scaled(by), [m * x for m, x in zip(norms, by, strict=True)]
    return stack


def _post(step: SiteStep, stack: Stack, merged: Expected, norms: Sequence[float]) -> Expected | None:
    if not isinstance(merged, Factored) or not stack.factored:
        return None
    left, right, d = spans(stack, [(merged.b, merged.a)])
    value = ((left.T @ merged.b) @ (merged.a @ right)).numpy()
    total = sum(len(a) for a in stack.a)
    cut = max(min(stack.shape[0], total), min(stack.shape[1], total)) * (2.0**-23 if stack.coarse else 2.0**-52)
    for post, params in step.post:
        settings = params.model_dump()
        if post.name == "svc":
            value = oracles.svc(value, d, cut=cut, **settings)
        elif post.name == "subspace_boost":
            value = oracles.subspace_boost(value, cut=cut, **settings)
        elif post.name == "rescale_output":
            to = settings["to"]
            sizes = {"mean_norm": statistics.fmean(norms), "max_norm": max(norms), "median_norm": statistics.median(norms)}
            value = oracles.unit(value) * (sizes[to] if isinstance(to, str) else to)
        else:
            return None
    spread = max(merged.spread, SPECTRAL_SPREAD)
    return Factored(left @ torch.from_numpy(value), right.T, spread, coarse=stack.coarse)

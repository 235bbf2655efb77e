"""Element-wise methods in float64, over tiles of rows, from their definitions.

Where a decision - is an entry kept, which sign wins - hangs on less than float32 can tell, the entry is undecided: it may then
be off by as much as the other decision would change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .expected import ByRows
from .stack import Stack

Draw = Callable[[int, str, int, torch.Tensor], torch.Tensor]
"""(adapter of the stack, purpose, first row, like) -> the keyed random numbers of these rows."""

SLACK = 1e-6
"""Share of a rescaling factor or a probability that its own float32 arithmetic may change."""


@dataclass(frozen=True)
class Kept:
    """One adapter's entries after pruning, in a tile of rows.

    x: the values. noise: how far float32 may be off where it decides alike. doubt: whether it may decide otherwise, and `most`
    the largest magnitude the entry can then have.
    """

    x: torch.Tensor
    noise: torch.Tensor
    doubt: torch.Tensor
    most: torch.Tensor


@dataclass(frozen=True)
class Site:
    """One site's inputs and the settings of its method. tile: rows that are made at a time."""

    stack: Stack
    settings: dict[str, Any]
    draw: Draw
    tile: int
    normalize: float | None = None
    """Sum of all weights, where the method divides by it."""

    def density(self, name: str = "density") -> list[float]:
        value = self.settings[name]
        return [value[t] for t in self.stack.members] if isinstance(value, tuple) else [value] * len(self.stack)

    def tiles(self) -> list[tuple[int, int]]:
        rows = self.stack.shape[0]
        return [(start, min(start + self.tile, rows)) for start in range(0, rows, self.tile)]

    def raw(self, t: int, start: int, stop: int) -> Kept:
        x, noise = self.stack.rows(t, start, stop), self.stack.noise(t, start, stop)
        return Kept(x, noise, torch.zeros_like(x, dtype=torch.bool), x.abs())


Prune = Callable[[int, int, int], Kept]
"""(adapter, first row, end) -> what is left of it."""


def elementwise(method: str, site: Site) -> ByRows | None:
    """The merged delta of a site in its full space; None for a method that is not known here."""
    maker = METHODS.get(method)
    return None if maker is None else ByRows(site.stack.shape, maker(site), tolerance=1e-5)


# --- what is kept -------------------------------------------------------------------------------------------------------


def magnitudes(site: Site, prune: Prune, t: int) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """All magnitudes of an adapter, unsorted, and the largest noise among them."""
    parts: list[torch.Tensor] = []
    most = 0.0
    for start, stop in site.tiles():
        kept = prune(t, start, stop)
        parts.append(kept.x.abs().flatten())
        most = max(most, float(kept.noise.max()))
    return torch.cat(parts).numpy(), most


def trimmed(site: Site, prune: Prune, densities: Sequence[float], kth: bool = False) -> Prune:
    """Only the largest magnitudes: exactly max(1, int(density N)) of them, or all of at least the kth smallest."""
    limits: list[tuple[float, float]] = []
    for t, density in enumerate(densities):
        if density == 1:
            limits.append((-1.0, 0.0))
            continue
        flat, noise = magnitudes(site, prune, t)
        count = int(density * flat.size)
        position = max(0, flat.size - count - 1) if kth else flat.size - max(1, count)
        flat.partition(position)
        limits.append((float(flat[position]), noise))

    def make(t: int, start: int, stop: int) -> Kept:
        kept, (least, noise) = prune(t, start, stop), limits[t]
        if least < 0:
            return kept
        size = kept.x.abs()
        near = (size - least).abs() <= kept.noise + noise
        # Zeros are zeros whether they are kept or not.
        near &= kept.most > 0
        x = torch.where(size >= least, kept.x, 0.0)
        doubt = (kept.doubt & (kept.most >= least)) | near
        most = torch.where((x != 0) | doubt, kept.most, 0.0)
        return Kept(x, torch.where(x != 0, kept.noise, 0.0), doubt, most)

    return make


def dropped(
    site: Site, probability: Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], purpose: str
) -> Prune:
    """Entries whose keyed random number lies below their probability, rescaled as the settings say.

    probability: (adapter, x, noise) -> the least and the largest it may be in float32.
    """
    rescale = site.settings["rescale"]

    def make(t: int, start: int, stop: int) -> Kept:
        raw = site.raw(t, start, stop)
        low, high = probability(t, raw.x, raw.noise)
        middle = (low + high) / 2
        u = site.draw(t, purpose, start, raw.x)
        keep, doubt = u < middle.float(), (high > low) & (u >= low) & (u <= high)
        inverse = rescale == "inverse"
        x = torch.where(keep, raw.x / middle if inverse else raw.x, 0.0)
        noise = raw.noise / low + raw.x.abs() * (1 / low - 1 / high) + x.abs() * SLACK if inverse else raw.noise
        most = torch.where(keep | doubt, raw.most / low if inverse else raw.most, 0.0)
        return Kept(x, torch.where(keep, noise, 0.0), doubt, most)

    if rescale != "l1":
        return make
    factors: list[float] = []
    for t in range(len(site.stack)):
        before = after = 0.0
        for start, stop in site.tiles():
            before += float(site.raw(t, start, stop).x.abs().sum())
            after += float(make(t, start, stop).x.abs().sum())
        factors.append(before / after if before > 0 and after > 0 else 1.0)

    def stretched(t: int, start: int, stop: int) -> Kept:
        kept, by = make(t, start, stop), factors[t]
        return Kept(kept.x * by, kept.noise * by + kept.x.abs() * (by * 10 * SLACK), kept.doubt, kept.most * by)

    return stretched


def _constant(site: Site) -> Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    densities = site.density()

    def probability(t: int, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = torch.full_like(x, densities[t])
        return p, p

    return probability


def _by_place(site: Site) -> Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """DELLA: the chance grows with the place of a magnitude in its row."""
    densities, epsilon = site.density(), float(site.settings["epsilon"])

    def probability(t: int, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        density, m = densities[t], x.shape[1]
        if density == 1 or m == 1:
            p = torch.full_like(x, density)
            return p, p
        size = x.abs()
        ascending = size.sort(dim=1).values
        around = noise + noise.amax(1, keepdim=True)
        first = torch.searchsorted(ascending, size - around)
        last = torch.searchsorted(ascending, size + around, right=True) - 1

        def chance(place: torch.Tensor) -> torch.Tensor:
            return density - epsilon + 2 * epsilon * place.double() / (m - 1)

        return chance(first) - 1e-7, chance(last) + 1e-7

    return probability


def between(site: Site) -> Prune:
    """Breadcrumbs: neither the largest magnitudes nor the small ones."""
    gamma, limits = float(site.settings["gamma"]), list[tuple[float, float, float]]()
    for t, density in enumerate(site.density()):
        flat, noise = magnitudes(site, site.raw, t)
        keep, top = int(density * flat.size), int(gamma * flat.size)
        bottom = max(0, flat.size - keep - top)
        flat.sort()
        low = flat[bottom] if bottom else -1.0
        high = flat[bottom + keep - 1] if bottom + keep < flat.size else np.inf
        limits.append((float(low), float(high), noise) if keep else (np.inf, -1.0, 0.0))

    def make(t: int, start: int, stop: int) -> Kept:
        raw, (low, high, noise) = site.raw(t, start, stop), limits[t]
        size, around = raw.x.abs(), raw.noise + noise
        doubt = ((size - low).abs() <= around) | ((size - high).abs() <= around)
        x = torch.where((size >= low) & (size <= high), raw.x, 0.0)
        return Kept(x, torch.where(x != 0, raw.noise, 0.0), doubt, raw.most)

    return make


# --- how it is put together ---------------------------------------------------------------------------------------------

Rows = tuple[torch.Tensor, torch.Tensor, int]
Make = Callable[[int, int], Rows]


def summed(site: Site, prune: Prune) -> Make:
    by = float(site.settings["gain"]) / (site.normalize or 1.0)

    def make(start: int, stop: int) -> Rows:
        each = [prune(t, start, stop) for t in range(len(site.stack))]
        doubt = _any(each)
        noise = _sum(k.noise for k in each) + torch.where(doubt, _sum(torch.where(k.doubt, k.most, 0.0) for k in each), 0.0)
        return by * _sum(k.x for k in each), abs(by) * noise, int(doubt.sum())

    return make


def elected(site: Site, prune: Prune, normalize: bool) -> Make:
    """The sign of the sum wins, +1 where it is 0; the entries that have it are added, or averaged by weight."""
    gain, weights = float(site.settings["gain"]), [abs(w) for w in site.stack.weights]

    def make(start: int, stop: int) -> Rows:
        each = [prune(t, start, stop) for t in range(len(site.stack))]
        total, noise = _sum(k.x for k in each), _sum(k.noise for k in each)
        sign = torch.where(total >= 0, 1.0, -1.0)
        doubt = _any(each) | ((total.abs() <= noise) & (noise > 0))
        agreeing = [torch.where(k.x * sign > 0, k.x, 0.0) for k in each]
        value = _sum(agreeing)
        # An entry within its noise of zero may agree or not; that moves the sum by its noise and the mass by its weight.
        doubt |= _sum(((k.x.abs() <= k.noise) & (k.noise > 0)).double() for k in each) > 0
        most = _sum(k.most for k in each)
        if normalize:
            mass = _sum((x != 0).double() * w for x, w in zip(agreeing, weights, strict=True))
            value = value / torch.where(mass > 0, mass, 1.0)
            noise = noise / torch.where(mass > 0, mass, 1.0)
            most = torch.stack([k.most / w for k, w in zip(each, weights, strict=True)]).amax(0)
        return gain * value, abs(gain) * (noise + torch.where(doubt, 2 * most, 0.0)), int(doubt.sum())

    return make


def _any(each: Sequence[Kept]) -> torch.Tensor:
    return torch.stack([k.doubt for k in each]).any(0)


def _sum(parts: Any) -> torch.Tensor:
    return torch.stack(list(parts)).sum(0)


# --- methods ------------------------------------------------------------------------------------------------------------


def _ties(site: Site) -> Make:
    kept = trimmed(site, site.raw, site.density(), site.settings["trim"] == "kth")
    return elected(site, kept, bool(site.settings["normalize"]))


def _dare_ties(site: Site) -> Make:
    kept = dropped(site, _constant(site), "dare drop")
    kept = trimmed(site, kept, site.density("ties_density"))
    return elected(site, kept, bool(site.settings["normalize"]))


def _sce(site: Site) -> Make:
    """Select the entries of largest variance, weigh adapters by what is left of them, erase the minority's."""
    stack, density, gain = site.stack, float(site.settings["density"]), float(site.settings["gain"])
    least, around = -1.0, 0.0

    def variance(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.stack([stack.rows(t, start, stop) for t in range(len(stack))])
        found = torch.where((x == x[0]).all(0), 0.0, x.var(0, correction=0))
        noise = torch.stack([stack.noise(t, start, stop) for t in range(len(stack))]).amax(0)
        return found, 4 * found.sqrt() * noise + 4 * noise**2

    if density < 1:
        parts = [variance(start, stop) for start, stop in site.tiles()]
        flat = torch.cat([found.flatten() for found, _ in parts]).numpy()
        keep = int(density * np.count_nonzero(flat))
        flat.partition(max(0, flat.size - max(1, keep)))
        least = float(flat[flat.size - keep]) if keep else np.inf
        around = max(float(noise.max()) for _, noise in parts)

    def select(t: int, start: int, stop: int) -> Kept:
        raw = site.raw(t, start, stop)
        if density == 1:
            return raw
        found, noise = variance(start, stop)
        doubt = (found - least).abs() <= noise + around
        return Kept(torch.where(found >= least, raw.x, 0.0), raw.noise, doubt & (found > 0), raw.most)

    share = [
        sum(float(select(t, start, stop).x.square().sum()) for start, stop in site.tiles()) / (stack.shape[0] * stack.shape[1])
        for t in range(len(stack))
    ]

    def make(start: int, stop: int) -> Rows:
        each = [select(t, start, stop) for t in range(len(stack))]
        total, noise = _sum(k.x for k in each), _sum(k.noise for k in each)
        sign = torch.where(total >= 0, 1.0, -1.0)
        agrees = [(k.x * sign > 0).double() * part for k, part in zip(each, share, strict=True)]
        mass, value = _sum(agrees), _sum(k.x * part for k, part in zip(each, agrees, strict=True))
        doubt = _any(each) | ((total.abs() <= noise) & (total != 0))
        doubt |= _sum(((k.x.abs() <= k.noise) & (k.x != 0)).double() for k in each) > 0
        most = torch.stack([k.most for k in each]).amax(0)
        value = value / torch.where(mass > 0, mass, 1.0)
        slack = noise + value.abs() * 10 * SLACK + torch.where(doubt, 2 * most, 0.0)
        return gain * value, abs(gain) * slack, int(doubt.sum())

    return make


def _pcb(site: Site) -> Make:
    """Entries compete: by their own size and by whether they go with the sum."""
    stack, n, gain = site.stack, len(site.stack), float(site.settings["gain"])
    tail, density = float(site.settings["clamp_tail"]), site.density()
    sizes, scores = list[tuple[float, float]](), list[tuple[float, float]]()

    def ends(flat: np.ndarray[Any, np.dtype[np.float64]], low: float, high: float) -> tuple[float, float]:
        flat.sort()
        places = int(flat.size * low), int(flat.size * (1 - high) - 1)
        bottom, top = (flat[min(max(place, 0), flat.size - 1)] for place in places)
        return float(bottom), float(top)

    def within(x: torch.Tensor, limits: tuple[float, float]) -> torch.Tensor:
        return x.clamp_min(limits[0]).clamp_max(limits[1])

    def stretched(x: torch.Tensor, limits: tuple[float, float]) -> torch.Tensor:
        low, high = limits
        return (x - low) / (high - low) if high > low else torch.zeros_like(x)

    def score(t: int, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        own = stretched(within(x.abs(), sizes[t]), sizes[t])
        return torch.exp(n * own**2) * torch.tanh(x * total)

    for t in range(n):
        sizes.append(ends(magnitudes(site, site.raw, t)[0], tail, tail))
    for t in range(n):
        parts = [
            score(t, stack.rows(t, start, stop), _sum(stack.rows(u, start, stop) for u in range(n))).flatten()
            for start, stop in site.tiles()
        ]
        scores.append(ends(torch.cat(parts).numpy(), 1 - density[t], 0.0))

    def make(start: int, stop: int) -> Rows:
        each = [site.raw(t, start, stop) for t in range(n)]
        total = _sum(k.x for k in each)
        raw = [score(t, k.x, total) for t, k in enumerate(each)]
        z = [stretched(within(value, limits), limits) for value, limits in zip(raw, scores, strict=True)]
        size = [within(k.x.abs(), sizes[t]) for t, k in enumerate(each)]
        up = _sum(a * k.x.sign() * s for a, k, s in zip(z, each, size, strict=True))
        value = up / _sum(z).clamp_min(1e-12)
        most = torch.stack(size).amax(0)
        # Where hardly any score is left, the mean hangs on the rounding of what is.
        edges = [value > low - 1e-4 * (high - low) for value, (low, high) in zip(raw, scores, strict=True)]
        doubt = (_sum(z) <= 1e-4) & torch.stack(edges).any(0)
        doubt |= torch.stack([(k.x.abs() <= k.noise) & (k.x != 0) for k in each]).any(0)
        # z is known to some units of float32 of the largest score; that counts where all z are small.
        loose = torch.stack(edges).any(0) * (8 * n * SLACK) / _sum(z).clamp_min(1e-4)
        slack = most * (10 * SLACK + loose) + torch.where(doubt, 2 * most, 0.0)
        return gain * value, abs(gain) * slack, int(doubt.sum())

    return make


def _emr(site: Site) -> Make:
    gain = float(site.settings["gain"])

    def make(start: int, stop: int) -> Rows:
        each = [site.raw(t, start, stop) for t in range(len(site.stack))]
        total, noise = _sum(k.x for k in each), _sum(k.noise for k in each)
        sign = torch.where(total >= 0, 1.0, -1.0)
        value = sign * torch.stack([torch.where(k.x * sign > 0, k.x.abs(), 0.0) for k in each]).amax(0)
        doubt = (total.abs() <= noise) & (noise > 0)
        most = torch.stack([k.most for k in each]).amax(0)
        return gain * value, abs(gain) * (noise + torch.where(doubt, 2 * most, 0.0)), int(doubt.sum())

    return make


def _consensus(site: Site) -> Make:
    gain, bound = float(site.settings["gain"]), float(site.settings["tall_lambda"])

    def make(start: int, stop: int) -> Rows:
        each = [site.raw(t, start, stop) for t in range(len(site.stack))]
        total, noise = gain * _sum(k.x for k in each), abs(gain) * _sum(k.noise for k in each)
        edges = [k.x.abs() - bound * (total - k.x).abs() for k in each]
        votes = _sum((edge > 0).double() for edge in edges)
        value = torch.where(votes >= site.settings["agree"], total, 0.0)
        doubt = _sum(
            ((edge.abs() <= k.noise + bound * (noise + k.noise)) & (noise > 0)).double()
            for edge, k in zip(edges, each, strict=True)
        )
        return value, noise + torch.where(doubt > 0, total.abs(), 0.0), int((doubt > 0).sum())

    return make


METHODS: dict[str, Callable[[Site], Make]] = {
    "ties": _ties,
    "magnitude_prune": lambda site: summed(site, trimmed(site, site.raw, site.density())),
    "dare_linear": lambda site: summed(site, dropped(site, _constant(site), "dare drop")),
    "dare_ties": _dare_ties,
    "della_linear": lambda site: summed(site, dropped(site, _by_place(site), "della drop")),
    "della": lambda site: elected(
        site, dropped(site, _by_place(site), "della drop"), normalize=bool(site.settings["normalize"])
    ),
    "breadcrumbs": lambda site: summed(site, between(site)),
    "breadcrumbs_ties": lambda site: elected(site, between(site), bool(site.settings["normalize"])),
    "sce": _sce,
    "pcb": _pcb,
    "emr": _emr,
    "consensus": _consensus,
}

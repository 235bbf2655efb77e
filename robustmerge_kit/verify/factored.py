"""An adapter's two factors against the delta they must stand for: entry by entry, as a whole, and in scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from .expected import ByRows, Expected, Factored
from .precision import first_beyond, half_step, unit, worst_share
from .records import Check

SHARP_SIDE = 1024
"""Up to this shorter side a dense delta is decomposed as a whole, to know every entry of its best approximation."""
WIDEST_SPREAD = 0.05
"""Uncertainty, as a share of the root mean square, beyond which single entries of an approximation are not looked at."""
DECOMPOSED = 1e-6
"""Share of its norm that decomposing a dense delta may add to an entry."""
SIGMAS = 6.0
"""How many standard deviations of what rounding does to the scale of a delta are still rounding."""


@dataclass(frozen=True)
class Written:
    """The factors of a file times their scale, and the dtype they were rounded to.

    Shapes: b (d_out, k), a (k, d_in), float64.
    """

    b: torch.Tensor
    a: torch.Tensor
    dtype: str

    @property
    def rank(self) -> int:
        """Directions in use; the others are padding."""
        used = (self.b != 0).any(0) & (self.a != 0).any(1)
        return int(used.sum())


def compare_factors(name: str, method: str, expected: Expected, written: Written, tile: int, cut: int | None) -> Check:
    """The check of one site. cut: the rank it may have been truncated to, None where nothing was.

    Allowed is what rounding every factor once explains, plus the part of the delta that a rank limit takes away.
    """
    (rows, cols), k = expected.shape, written.rank
    tail = expected.tail(cut) if cut is not None else 0.0
    sums = _Sums()
    for start in range(0, rows, tile):
        _add_tile(sums, expected, written, start, min(start + tile, rows), sharp=tail == 0 and _sharp(expected))
    if sums.through_a is not None:
        sums.spread2 += float((half_step(written.a, written.dtype) * sums.through_a).square().sum()) / 3
    norm = math.sqrt(sums.wanted2)
    rounding = math.sqrt(2 / 3 * float((written.b.square().sum(0) * written.a.square().sum(1)).sum())) * unit(written.dtype)
    # Undecided numbers add to the truncation's error in full; rounding is independent of it.
    allowed = math.hypot(tail * (1 + 1e-6) + math.sqrt(sums.slack2), 3 * rounding + expected.tolerance * norm)
    error = math.sqrt(sums.error2)
    share, bound = (_without(value, tail) / norm if norm else float(value > 0) for value in (error, allowed))
    problem = _problem(expected, written, sums, tail, error, allowed, rounding)
    if problem is None and cut is not None and k > cut:
        problem = f"has {k} directions, the recipe asks for at most {cut}"
    if problem is None and cut is not None and tail > 0:
        problem = _compare_with_best(expected, written, cut, math.sqrt(sums.slack2) + 1e-6 * norm, tile)
    limited = tail / norm if norm else 0.0
    return Check(name, method, expected.by, rows * cols, share, bound, sums.worst, sums.undecided, problem, limited)


def _without(whole: float, part: float) -> float:
    """The other side of a right triangle; NaN stays NaN."""
    return math.sqrt(max((whole - part) * (whole + part), 0.0)) if math.isfinite(whole) else whole


def _compare_with_best(expected: Expected, written: Written, cut: int, disturbed: float, tile: int) -> str | None:
    """Entry by entry against the best approximation, where that is well determined and not too large to find.

    disturbed: how uncertain the delta itself is; a gap between singular values that is small beside it makes more of it.
    """
    if isinstance(expected, ByRows) and min(expected.shape) > SHARP_SIDE:
        return None
    s = expected.spectrum[1]
    gap = float(s[cut - 1] - s[cut])
    best = expected.cut(cut)
    if gap <= 0 or best.size == 0:
        return None
    spread = disturbed * (1 + 4 * float(s[cut - 1]) / gap) / best.size
    if spread > WIDEST_SPREAD:
        return None
    sums = _Sums()
    best = replace(best, spread=best.spread + spread)
    for start in range(0, expected.shape[0], tile):
        _add_tile(sums, best, written, start, min(start + tile, expected.shape[0]), sharp=True)
    return sums.first


@dataclass
class _Sums:
    error2: float = 0.0
    wanted2: float = 0.0
    found2: float = 0.0
    slack2: float = 0.0
    dot: float = 0.0
    slack_dot: float = 0.0
    spread2: float = 0.0
    worst: float = 0.0
    undecided: int = 0
    first: str | None = None
    through_a: torch.Tensor | None = None


def _sharp(expected: Expected) -> bool:
    return isinstance(expected, Factored) or expected.sharp


def _add_tile(sums: _Sums, expected: Expected, written: Written, start: int, stop: int, *, sharp: bool) -> None:
    wanted, noise, undecided = expected.rows(start, stop)
    if isinstance(expected, ByRows):
        # What is not made of factors is decomposed into them, in float32.
        noise = noise + DECOMPOSED * float(wanted.norm())
    b = written.b[start:stop]
    found = b @ written.a
    error = found - wanted
    sums.error2 += float(error.square().sum())
    sums.wanted2 += float(wanted.square().sum())
    sums.found2 += float(found.square().sum())
    sums.slack2 += float(noise.square().sum())
    sums.dot += float((error * found).sum())
    sums.slack_dot += float((noise * found.abs()).sum())
    sums.undecided += undecided
    # What rounding B and A adds to <found - wanted, found>: independent errors, uniform within half a step.
    sums.spread2 += float((half_step(b, written.dtype) * (found @ written.a.T)).square().sum()) / 3
    sums.through_a = b.T @ found + (0.0 if sums.through_a is None else sums.through_a)
    if not sharp:
        if not torch.isfinite(error).all():
            row, col = first_beyond(error, torch.full_like(error, math.inf)) or (0, 0)
            sums.first = sums.first or f"not a number at [{start + row}, {col}]"
        return
    u = unit(written.dtype)
    least = float(half_step(torch.zeros(1, dtype=torch.float64), written.dtype))
    allowed = noise + (b.abs() @ written.a.abs()) * (2 * u + u * u)
    allowed += least * (b.abs().sum(1, keepdim=True) + written.a.abs().sum(0))
    sums.worst = max(sums.worst, worst_share(error, allowed))
    place = first_beyond(error, allowed)
    if place is not None and sums.first is None:
        row, col = place
        sums.first = f"B A differs first at [{start + row}, {col}]: {found[row, col]:.6g}, expected {wanted[row, col]:.6g}"


def _problem(
    expected: Expected, written: Written, sums: _Sums, tail: float, error: float, allowed: float, rounding: float
) -> str | None:
    if sums.first is not None:
        return sums.first
    if not error <= allowed:
        return f"B A is {error:.3g} away from the merged delta, {allowed:.3g} is what rounding and the rank limit explain"
    off = abs(sums.dot) - expected.tolerance * sums.found2 - rounding**2 - sums.slack_dot
    if off > SIGMAS * math.sqrt(sums.spread2):
        return f"B A is {1 / (1 - sums.dot / sums.found2):.6f} times the merged delta"
    if isinstance(expected, Factored) and expected.noise_b is not None and expected.noise_a is not None and tail == 0:
        return _compare_each("A", written.a, expected.a, expected.noise_a, written.dtype) or _compare_each(
            "B", written.b, expected.b, expected.noise_b, written.dtype
        )
    return None


def _compare_each(which: str, found: torch.Tensor, wanted: torch.Tensor, noise: torch.Tensor, dtype: str) -> str | None:
    """The factor itself, where the merge writes it as it is, padded with zeros."""
    rows, cols = min(found.shape[0], wanted.shape[0]), min(found.shape[1], wanted.shape[1])
    padded = torch.zeros_like(found)
    blurred = torch.zeros_like(found)
    padded[:rows, :cols], blurred[:rows, :cols] = wanted[:rows, :cols], noise[:rows, :cols]
    place = first_beyond(found - padded, half_step(padded, dtype) + blurred)
    if place is None:
        return None
    row, col = place
    return f"{which} differs first at [{row}, {col}]: {found[row, col]:.6g}, expected {padded[row, col]:.6g}"

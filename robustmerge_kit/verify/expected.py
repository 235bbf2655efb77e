"""What a site's merged delta must be: as two float64 factors, or made row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .records import CheckedBy
from .stack import UNIT

EXACT_SIDE = 2048
"""Above this shorter side a dense delta is truncated by a randomised method, whose result is near the best one, not it."""
NEAR = 1.05
"""How much larger than the least its error may then be."""


@dataclass(frozen=True)
class Factored:
    """D = b a. exact: the merge writes these very factors, in this order, each number within `noise_b` and `noise_a`.

    spread: share of the delta's root mean square that float32 arithmetic may add to any entry, where more than products are
    taken. coarse: whether the merge ran in float32.

    Shapes: b (d_out, k), a (k, d_in), float64; noise_b and noise_a alike.
    """

    b: torch.Tensor
    a: torch.Tensor
    spread: float = 0.0
    noise_b: torch.Tensor | None = None
    noise_a: torch.Tensor | None = None
    coarse: bool = True
    by: CheckedBy = "independent"

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    @property
    def tolerance(self) -> float:
        """Relative error of the whole delta that arithmetic explains."""
        return 2e-5 + self.spread

    @cached_property
    def size(self) -> float:
        """The root mean square of the delta."""
        norm2 = float(((self.b.T @ self.b) * (self.a @ self.a.T)).sum())
        return (max(norm2, 0.0) / max(1, self.b.shape[0] * self.a.shape[1])) ** 0.5

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Rows of D, how far from them float32 arithmetic may be, and how many of them are undecided."""
        b = self.b[start:stop]
        unit = UNIT if self.coarse else UNIT**2
        noise = (b.abs() @ self.a.abs()) * ((self.a.shape[0] + 12) * unit) + self.spread * self.size
        if self.noise_b is not None and self.noise_a is not None:
            noise += self.noise_b[start:stop] @ self.a.abs() + b.abs() @ self.noise_a
        return b @ self.a, noise, 0

    def loosened(self) -> Factored:
        """The same where another decomposition made some of the merge's columns: numbers are as sure as their largest."""
        if self.noise_b is None or self.noise_a is None:
            return self
        unit = 8 * UNIT
        largest_b, largest_a = self.b.abs().amax(0, keepdim=True), self.a.abs().amax(1, keepdim=True)
        return replace(self, noise_b=self.noise_b + unit * largest_b, noise_a=self.noise_a + unit * largest_a)

    def transposed(self) -> Expected:
        return Factored(self.a.T, self.b.T, self.spread, _turned(self.noise_a), _turned(self.noise_b), self.coarse, self.by)

    def cut(self, k: int) -> Factored:
        """The best approximation of rank k."""
        u, s, v = self.spectrum
        root = s[:k].sqrt()
        spread = max(self.spread, 3e-4)
        return Factored(u[:, :k] * root, root[:, None] * v[:, :k].T, spread, coarse=self.coarse, by=self.by)

    @cached_property
    def spectrum(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U, S, V of D."""
        q, r = torch.linalg.qr(self.b)
        p, l = torch.linalg.qr(self.a.T)  # noqa: E741 - the two triangles
        u, s, vh = torch.linalg.svd(r @ l.T, full_matrices=False)
        return q @ u, s, p @ vh.T

    def tail(self, k: int) -> float:
        """||D - its best approximation of rank k||_F."""
        return float(self.spectrum[1][k:].norm())


def _turned(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.T


@dataclass(frozen=True)
class ByRows:
    """A delta made in rows. make(start, stop): rows, noise, undecided, as `Factored.rows` gives them.

    sharp: whether single entries are bounded; if not, only the whole delta is.
    """

    shape: tuple[int, int]
    make: Callable[[int, int], tuple[torch.Tensor, torch.Tensor, int]]
    by: CheckedBy = "independent"
    tolerance: float = 1e-4
    sharp: bool = True

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        return self.make(start, stop)

    def transposed(self) -> Expected:
        values, noise, undecided = self.make(0, self.shape[0])
        turned, blurred, whole = values.T, noise.T, self.shape[1]
        shape = self.shape[1], self.shape[0]
        return replace(
            self,
            shape=shape,
            make=lambda start, stop: (turned[start:stop], blurred[start:stop], undecided * (stop - start) // whole),
        )

    @cached_property
    def spectrum(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U, S, V of the whole delta."""
        values = self.make(0, self.shape[0])[0]
        u, s, vh = torch.linalg.svd(values, full_matrices=False)
        return u, s, vh.T

    def cut(self, k: int) -> Factored:
        """The best approximation of rank k."""
        u, s, v = self.spectrum
        root = s[:k].sqrt()
        return Factored(u[:, :k] * root, root[:, None] * v[:, :k].T, 1e-3, by=self.by)

    @cached_property
    def values(self) -> torch.Tensor:
        """The squares of the singular values, descending, from the smaller Gram matrix."""
        made = self.make(0, self.shape[0])[0]
        gram = made @ made.T if made.shape[0] <= made.shape[1] else made.T @ made
        return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)

    def tail(self, k: int) -> float:
        """||D - its best approximation of rank k||_F."""
        least = float(self.values[k:].sum().sqrt())
        return least * NEAR if min(self.shape) > EXACT_SIDE else least


Expected = Factored | ByRows

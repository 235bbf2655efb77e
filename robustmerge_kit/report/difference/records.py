"""The records a comparison of two adapters or two models consists of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Observe = Callable[[str, int, int], None]
"""Called after every site or tensor: its name, 1, bytes read."""

Status = Literal["equal", "different", "only in A", "only in B", "other shape"]
"""How a name stands in A and B; `equal` means that nothing differs at all."""


@dataclass(frozen=True)
class Figures:
    """Two updates or tensors a and b as vectors: ||a||^2, ||b||^2, ||b - a||^2 and <a, b>.

    All four add up over parts, so the sum of figures is the figures of the whole.
    """

    a2: float = 0.0
    b2: float = 0.0
    difference2: float = 0.0
    inner: float = 0.0

    def __add__(self, other: Figures) -> Figures:
        return Figures(self.a2 + other.a2, self.b2 + other.b2, self.difference2 + other.difference2, self.inner + other.inner)

    @property
    def relative_error(self) -> float:
        """||b - a|| / ||a||; 0 where nothing differs, infinity where a alone is zero or the norms are too large for float64."""
        if self.difference2 == 0:
            return 0.0
        known = self.a2 and math.isfinite(self.a2 + self.difference2)
        return math.sqrt(self.difference2) / math.sqrt(self.a2) if known else math.inf

    @property
    def cosine(self) -> float | None:
        """<a, b> / (||a|| ||b||), None where one of them is zero."""
        if not self.a2 or not self.b2:
            return None
        return max(-1.0, min(1.0, self.inner / math.sqrt(self.a2) / math.sqrt(self.b2)))

    @property
    def norm_ratio(self) -> float | None:
        """||b|| / ||a||, None where a is zero."""
        return math.sqrt(self.b2) / math.sqrt(self.a2) if self.a2 else None


@dataclass(frozen=True)
class Ranks:
    """Numerical ranks of a site's update in A, in B, and of what separates them; None where there is no such update."""

    a: int | None
    b: int | None
    difference: int


@dataclass(frozen=True)
class Side:
    """What a name stands for on one side: the shape of the update or tensor, and the dtype it is stored in."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Difference:
    """One site, or one tensor.

    figures: None where nothing can be compared, and for equal tensors, whose norms nobody needs. not_finite: positions where
    a or b is NaN or infinite and the two do not agree.
    """

    name: str
    status: Status
    a: Side | None
    b: Side | None
    figures: Figures | None = None
    ranks: Ranks | None = None
    not_finite: int = 0

    @property
    def relative_error(self) -> float:
        """Of the figures; 0 where nothing differs, infinity where nothing can be compared."""
        if self.status == "equal":
            return 0.0
        return self.figures.relative_error if self.figures and self.status == "different" and not self.not_finite else math.inf

    def within(self, tolerance: float) -> bool:
        """Whether it is on both sides, with a relative error of at most `tolerance`."""
        return self.status in ("equal", "different") and self.relative_error <= tolerance


@dataclass(frozen=True)
class Totals:
    """All sites, or all tensors, together: how many there are of each status, and the sum of what was compared."""

    counts: dict[Status, int]
    figures: Figures
    worst: Difference | None

    @classmethod
    def of(cls, differences: Sequence[Difference]) -> Totals:
        """The totals of differences in order, the largest first."""
        counts: dict[Status, int] = {"equal": 0, "different": 0, "only in A": 0, "only in B": 0, "other shape": 0}
        total = Figures()
        for each in differences:
            counts[each.status] += 1
            total += each.figures or Figures()
        return cls(counts, total, differences[0] if differences and differences[0].status != "equal" else None)


@dataclass(frozen=True)
class Operand:
    """A or B as the user named it, and what it was found to be."""

    reference: str
    label: str
    layout: str


@dataclass(frozen=True)
class Comparison:
    """Two adapters: their sites, and the tensors beside them. Two models: tensors alone. Each list has the largest first."""

    kind: Literal["adapters", "models"]
    a: Operand
    b: Operand
    sites: tuple[Difference, ...]
    tensors: tuple[Difference, ...]
    notes: tuple[str, ...] = field(default=())

    def beyond(self, tolerance: float) -> list[Difference]:
        """What is not within a relative error of `tolerance`, missing names included."""
        return [each for each in (*self.sites, *self.tensors) if not each.within(tolerance)]


def largest_first(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """In descending order of relative error, missing and misshapen ones before all others, by name where these agree."""
    return tuple(sorted(differences, key=lambda each: (-each.relative_error, each.name)))

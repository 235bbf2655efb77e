"""What is measured while a plan is executed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .conflict import Conflict
from .memory import AnonymousPeak


@dataclass(frozen=True)
class SiteReport:
    """What the receipt says of a site. `zero` are recipe positions of adapters whose delta is zero there.

    approximated: recipe position -> share of energy kept, of DoRA deltas that factors had to stand for.
    """

    site: str
    method: str
    rank: int
    retained: float
    norm: float
    rounding: float
    zero: tuple[int, ...]
    approximated: Mapping[int, float] = field(default_factory=dict[int, float])


@dataclass
class Outcome:
    """What was measured on the way; filled by one thread."""

    sites: list[SiteReport] = field(default_factory=list[SiteReport])
    norm2: float = 0.0
    error2: float = 0.0
    kept2: float = 0.0
    full2: float = 0.0
    peak_in_flight: int = 0
    seconds: float = 0.0
    resumed: int = 0
    conflict: Conflict | None = None
    memory: AnonymousPeak = field(default_factory=AnonymousPeak)
    notes: list[str] = field(default_factory=list[str])

    def note_approximations(self) -> None:
        """A remark on the DoRA deltas that factors had to stand for, with the worst of them."""
        shares = [(min(report.approximated.values()), report.site) for report in self.sites if report.approximated]
        if shares:
            worst, site = min(shares)
            self.notes.append(
                f"factors stand for DoRA deltas at {len(shares)} sites and keep at least {worst:.2%} of their energy (least at "
                f"{site})"
            )

    @property
    def rounding(self) -> float:
        """Relative error that rounding to the output dtype causes, over all sites."""
        return math.sqrt(self.error2 / self.norm2) if self.norm2 > 0 else 0.0

    @property
    def retained(self) -> float:
        """Share of the squared norm that truncation kept, over all sites."""
        return self.kept2 / self.full2 if self.full2 > 0 else 1.0

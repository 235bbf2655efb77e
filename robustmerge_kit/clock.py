"""Seconds by stage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds by stage, since the last lap."""

    laps: dict[str, float] = field(default_factory=dict[str, float])
    start: float = field(default_factory=time.perf_counter)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.laps[stage] = now - self.last
        self.last = now

    def seconds(self) -> dict[str, float]:
        """All laps, and the total so far."""
        return {**self.laps, "total": time.perf_counter() - self.start}

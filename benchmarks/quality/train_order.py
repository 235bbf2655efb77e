"""Which adapters there are, and in which order they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MULTITASK = "multitask"


@dataclass(frozen=True)
class Wanted:
    """One adapter: its task (or all of them), rank, seed, and whether A starts the same for all tasks."""

    task: str
    seed: int = 0
    rank: int = 16
    initial: str = "independent"

    @property
    def group(self) -> str:
        """Adapters that are merged with each other share a folder."""
        return f"{self.initial}-r{self.rank}-s{self.seed}"


def order_of_work(tasks: Sequence[str]) -> list[Wanted]:
    """Every adapter of the benchmark, the most important first."""
    first = [Wanted(task) for task in tasks]
    shared = [Wanted(task, initial="shared") for task in tasks]
    more = [Wanted(task, seed=seed) for seed in (1, 2) for task in (*tasks, MULTITASK)]
    ranks = [Wanted(task, rank=rank) for rank in (4, 64) for task in tasks]
    return [*first, Wanted(MULTITASK), *shared, *more, *ranks]

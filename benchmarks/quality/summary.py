"""From scores to the figures of the tables: means over tasks and seeds, shares of the individual adapters' accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .ledger import FIRST, RANK, SEEDS, SHARED, Ledger
from .scores import Score
from .settings import Row, Setting
from .train_order import Wanted

GROUPS = tuple(Wanted("", seed=seed).group for seed in SEEDS)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; no deviation of one."""

    values: tuple[float, ...]

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def mean(self) -> float:
        """Mean over the seeds there are."""
        return statistics.fmean(self.values)

    @property
    def words(self) -> str:
        """`.853 ± .004`, `.853` for one seed, nothing for none."""
        if not self.values:
            return ""
        deviation = f" ± {_short(statistics.stdev(self.values))}" if len(self.values) > 1 else ""
        return _short(self.mean) + deviation


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


@dataclass(frozen=True)
class Means:
    """Accuracy over the seen tasks, over the unseen ones, and over the seen ones as a share of the individual adapters'."""

    seen: Spread
    unseen: Spread
    normalised: Spread


@dataclass(frozen=True)
class Summary:
    """A ledger with the names of its tasks."""

    ledger: Ledger
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def individual(self, group: str) -> float | None:
        """Mean accuracy of the adapters on their own tasks, where all are evaluated."""
        found = [self.ledger.individual(group, name) for name in self.seen]
        return None if None in found else statistics.fmean(value for value in found if value is not None)

    def means(self, setting: Setting, groups: Sequence[str] = GROUPS) -> Means:
        """The figures of a setting over the groups it was evaluated on."""
        return self.of(lambda group: self.ledger.score(setting, group), groups)

    def of(self, find: Callable[[str], Score | None], groups: Sequence[str] = GROUPS) -> Means:
        """The figures of whatever has a score for every group."""
        found = [(group, score) for group in groups if (score := find(group))]
        shares = [share for group, score in found if (share := self.normalised(score, group)) is not None]
        return Means(
            Spread(tuple(score.mean(self.seen) for _, score in found)),
            Spread(tuple(score.mean(self.unseen) for _, score in found)),
            Spread(tuple(shares)),
        )

    def normalised(self, score: Score, group: str) -> float | None:
        """Mean over the seen tasks of accuracy over the individual adapter's."""
        shares = []
        for name in self.seen:
            alone = self.ledger.individual(group, name)
            if not alone:
                return None
            shares.append(score.accuracy[name] / alone)
        return statistics.fmean(shares)

    def multitask(self) -> Means:
        """The figures of the multi-task adapters."""
        by_group = {Wanted("", seed=seed).group: seed for seed in SEEDS}
        return self.of(lambda group: self.ledger.multitask(by_group[group]))


@dataclass(frozen=True)
class Line:
    """A row of the main table."""

    name: str
    chosen: Setting
    settled: bool
    """Whether every candidate was tried."""
    full: Means
    cut: Means
    default: Means
    shared: Means


def lines(summary: Summary, rows: Sequence[Row]) -> list[Line]:
    """Every row that has a figure."""
    found: list[Line] = []
    for row in rows:
        chosen = summary.ledger.choose(row)
        full = summary.means(chosen)
        line = Line(
            name=row.name,
            chosen=chosen,
            settled=len(summary.ledger.tried(row)) == len(row.candidates),
            full=full,
            cut=summary.means(chosen.cut(RANK)) if row.rank_16 else full,
            default=summary.means(row.default, [FIRST]),
            shared=summary.means(chosen, [SHARED]),
        )
        if full.seen:
            found.append(line)
    return found


def summarize(ledger: Ledger) -> Summary | None:
    """The summary of a ledger; the seen tasks are those that were validated on. None before the first evaluation."""
    tested, validated = ledger.zero_shot("test"), ledger.zero_shot("validation")
    if tested is None or validated is None:
        return None
    seen = tuple(name for name in tested.accuracy if name in validated.accuracy)
    return Summary(ledger, seen, tuple(name for name in tested.accuracy if name not in seen))

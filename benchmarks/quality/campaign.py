"""What is evaluated, in the order of importance; whatever is not trained yet is left for the next run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .bench import Bench
from .ledger import FIRST, RANK, SEEDS, SHARED
from .settings import Row
from .studies import studies
from .train_order import Wanted


def references(bench: Bench, rows: Sequence[Row]) -> None:
    """Zero-shot, individual adapters and multi-task adapters."""
    bench.zero_shot("test")
    bench.zero_shot("validation")
    for seed in SEEDS:
        bench.individual(Wanted("", seed=seed).group)
        bench.multitask(seed)
    bench.individual(SHARED)


def validation(bench: Bench, rows: Sequence[Row]) -> None:
    """Every candidate of every row, seed 0; all defaults first."""
    for row in rows:
        bench.merge(row.default, FIRST, "validation")
    for row in rows:
        for setting in row.candidates:
            bench.merge(setting, FIRST, "validation")


def test(bench: Bench, rows: Sequence[Row]) -> None:
    """The chosen setting of every row, seed 0, the same cut to rank 16, and the default."""
    for row in rows:
        bench.merge(bench.ledger.choose(row), FIRST, "test")
    for row in rows:
        if row.rank_16:
            bench.merge(bench.ledger.choose(row).cut(RANK), FIRST, "test")
    for row in rows:
        bench.merge(row.default, FIRST, "test")


def initialisation(bench: Bench, rows: Sequence[Row]) -> None:
    """The chosen settings on adapters that started from one A."""
    for row in rows:
        bench.merge(bench.ledger.choose(row), SHARED, "test")


def seeds(bench: Bench, rows: Sequence[Row]) -> None:
    """The chosen settings on the adapters of the other seeds."""
    others = [Wanted("", seed=seed).group for seed in SEEDS[1:]]
    for group in others:
        for row in rows:
            bench.merge(bench.ledger.choose(row), group, "test")
    for group in others:
        for row in rows:
            if row.rank_16:
                bench.merge(bench.ledger.choose(row).cut(RANK), group, "test")


def questions(bench: Bench, rows: Sequence[Row]) -> None:
    """The paper's studies."""
    chosen = {row.name: bench.ledger.choose(row) for row in rows}
    for question in studies(chosen, bench.names):
        for line in question.lines:
            bench.merge(line.setting, line.group, "test", line.names)


STEPS: dict[str, Callable[[Bench, Sequence[Row]], None]] = {
    "references": references,
    "validation": validation,
    "test": test,
    "seeds": seeds,
    "initialisation": initialisation,
    "studies": questions,
}

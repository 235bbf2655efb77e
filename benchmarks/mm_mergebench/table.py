"""The paper's Tables 2 and 3 with its figures (paper.json) above ours; what was not run is left empty."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .scores import read_scores
from .tasks import TASKS

SCORES, GENERAL = "scores.json", "general.json"
PAPER = Path(__file__).with_name("paper.json")
NAMES = {
    "zero-shot": "Zero-shot",
    "individual": "Individual",
    "multi-task": "Multi-task",
    "task_arithmetic": "Task arithmetic",
    "dare": "DARE",
    "ties": "TIES",
    "pcb": "PCB",
    "robustmerge": "RobustMerge",
}
GENERAL_COLUMNS = ("POPE", "MME", "MMBench")


def tables(out: Path) -> str:
    """Both tables, and below each what its figures leave out, in Markdown."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    results = read_scores(out / SCORES).get("candidates", {})
    general = json.loads((out / GENERAL).read_text(encoding="utf-8")) if (out / GENERAL).is_file() else {}
    parts = [
        "## Table 2: MM-MergeBench, LLaVA-1.5-7B\n",
        _table2(paper["table2"], results),
        *_remarks(results),
        "\n## Table 3: general benchmarks\n",
        _table3(paper["table3"], general),
        f"\nThe paper's figures: {paper['source']}.",
    ]
    return "\n".join(parts) + "\n"


def _table2(paper: Mapping[str, Mapping[str, float]], results: Mapping[str, Mapping[str, Any]]) -> str:
    seen, unseen = ([task.name for task in TASKS if task.seen is wanted] for wanted in (True, False))
    head = ["method", "figures", *seen, "mean", *unseen, "mean"]
    lines: list[list[str]] = []
    for name in [*NAMES, *(name for name in results if name not in NAMES)]:
        if name in paper:
            figures = paper[name]
            cells = [*(figures.get(task) for task in seen), figures.get("seen")]
            cells += [*(figures.get(task) for task in unseen), figures.get("unseen")]
            lines.append([NAMES[name], "paper", *map(_cell, cells)])
        for kind, label in (("official", "ours"), ("corrected", "ours, corrected")):
            row = _row(results.get(name, {}), kind)
            groups = [[row.get(task) for task in group] for group in (seen, unseen)]
            cells = [cell for group in groups for cell in (*group, _mean(group))]
            lines.append([NAMES.get(name, name), label, *map(_cell, cells)])
    return _markdown(head, lines)


def _row(scores: Mapping[str, Any], kind: str) -> dict[str, float | None]:
    """Figures that stand for their task: a part of the answers does not."""
    return {task: score[kind] for task, score in scores.items() if score["answered"] == score["questions"]}


def _remarks(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    remarks: dict[str, None] = {}
    for name, scores in results.items():
        for task, score in scores.items():
            if score["answered"] < score["questions"]:
                part = f"{score['answered']} of {score['questions']} questions answered"
                figures = f"official {_cell(score['official']) or '-'}, corrected {_cell(score['corrected'])}"
                remarks[f"- {name}, {task}: {part}, not in the table ({figures})"] = None
            if score["note"]:
                remarks[f"- {task} has no official figure: {score['note']}"] = None
            if score["more"]:
                figures = ", ".join(f"{figure} {_cell(value)}" for figure, value in score["more"].items())
                remarks[f"- {name}, {task}: {figures}"] = None
    return ["", *remarks] if remarks else []


def _table3(paper: Mapping[str, Mapping[str, float]], general: Mapping[str, Mapping[str, float]]) -> str:
    lines: list[list[str]] = []
    for name in [*NAMES, *(name for name in general if name not in NAMES)]:
        if name in paper:
            lines.append([NAMES[name], "paper", *(_cell(paper[name].get(column), 1) for column in GENERAL_COLUMNS)])
        if name in paper or name in general:
            ours = general.get(name, {})
            lines.append([NAMES.get(name, name), "ours", *(_cell(ours.get(column), 1) for column in GENERAL_COLUMNS)])
    return _markdown(["method", "figures", *GENERAL_COLUMNS], lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _cell(value: float | None, places: int = 2) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def main(arguments: Sequence[str]) -> int:
    """Print the tables of a results folder."""
    parser = argparse.ArgumentParser(prog="tables.py", description="Tables 2 and 3 of the paper next to the results of run.py.")
    parser.add_argument("out", type=Path, help="the --out of run.py; the paper's figures alone where there is nothing")
    print(tables(parser.parse_args(arguments).out), end="")
    sys.stdout.flush()
    return 0

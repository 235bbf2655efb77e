"""The tables of RESULTS.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from results import table

from .correlation import Correlation
from .ledger import FIRST, SHARED
from .settings import Row
from .studies import Question
from .summary import GROUPS, Line, Means, Spread, Summary
from .task_names import UNBALANCED

HEAD = (
    "merged by",
    "setting",
    "seeds",
    "seen",
    "unseen",
    "normalised",
    "rank 16: seen",
    "unseen",
    "untuned: seen",
    "unseen",
    "one A: seen",
    "unseen",
)


def main_table(summary: Summary, lines: Sequence[Line]) -> str:
    """Zero-shot, individual, multi-task, then every method; one line each."""
    zero = summary.ledger.zero_shot()
    assert zero is not None
    rest = [""] * 6
    plain = Means(Spread((zero.mean(summary.seen),)), Spread((zero.mean(summary.unseen),)), Spread(()))
    references = [["zero-shot", "", "", *_of(plain), *rest]]
    alone = Spread(tuple(value for group in GROUPS if (value := summary.individual(group)) is not None))
    references.append(["individual", "", str(len(alone.values)), alone.words, "", "1", *rest])
    both = summary.multitask()
    references.append(["multi-task", "", str(len(both.seen.values)), *_of(both), *rest])
    methods = [
        [
            line.name,
            line.chosen.words + ("" if line.settled else " (not all tried)"),
            str(len(line.full.seen.values)),
            *_of(line.full),
            *_of(line.cut)[:2],
            *_of(line.default)[:2],
            *_of(line.shared)[:2],
        ]
        for line in lines
    ]
    return table(HEAD, [*references, *methods])


def _of(means: Means) -> list[str]:
    return [means.seen.words, means.unseen.words, means.normalised.words]


def task_table(summary: Summary, lines: Sequence[Line]) -> str:
    """Accuracy on every task, mean over the seeds."""
    names = [*summary.seen, *summary.unseen]
    zero = summary.ledger.zero_shot()
    assert zero is not None
    alone = [_mean([summary.ledger.individual(group, name) for group in GROUPS]) for name in summary.seen]
    body = [
        ["zero-shot", *(_points(zero.accuracy[name]) for name in names)],
        ["individual", *alone, *[""] * len(summary.unseen)],
    ]
    both = [score for seed in range(len(GROUPS)) if (score := summary.ledger.multitask(seed))]
    if both:
        body.append(["multi-task", *(_mean([score.accuracy[name] for score in both]) for name in names)])
    for line in lines:
        scores = [score for group in GROUPS if (score := summary.ledger.score(line.chosen, group))]
        body.append([line.name, *(_mean([score.accuracy[name] for score in scores]) for name in names)])
    return table(("", *names), body)


def f1_table(summary: Summary, lines: Sequence[Line]) -> str:
    """Accuracy and macro-F1 of the tasks with one large class."""
    names = [name for name in summary.seen if name in UNBALANCED]
    if not names:
        return ""
    head = ["", *(part for name in names for part in (name, "macro-F1"))]
    zero = summary.ledger.zero_shot()
    assert zero is not None
    body = [["zero-shot", *(part for name in names for part in (_points(zero.accuracy[name]), _points(zero.macro_f1[name])))]]
    for line in lines:
        scores = [score for group in GROUPS if (score := summary.ledger.score(line.chosen, group))]
        cells = [
            _mean([figures[name] for figures in kind])
            for name in names
            for kind in ([score.accuracy for score in scores], [score.macro_f1 for score in scores])
        ]
        body.append([line.name, *cells])
    return "Accuracy and macro-F1 where one class is most of the rows:\n\n" + table(head, body)


def study_table(summary: Summary, question: Question) -> str:
    """The lines of a study that were evaluated, if they are most of it; one seed."""
    body = []
    for line in question.lines:
        score = summary.ledger.score(line.setting, line.group, "test", line.names)
        if score:
            merged = line.names or summary.seen
            body.append([line.words, line.setting.words, _points(score.mean(merged)), _points(score.mean(summary.unseen))])
    if 2 * len(body) <= len(question.lines):
        return ""
    return f"{question.title}:\n\n" + table(("", "setting", "seen", "unseen"), body)


def grid_table(summary: Summary, row: Row) -> str:
    """Validation accuracy of every candidate of a row, seed 0."""
    found = sorted(summary.ledger.tried(row), key=lambda each: -each[1].mean(list(each[1].accuracy)))
    body = [[setting.words, _points(score.mean(list(score.accuracy)))] for setting, score in found]
    return f"{row.name}, every setting that was tried:\n\n" + table(("setting", "validation"), body) if body else ""


def correlation_table(found: Sequence[Correlation]) -> str:
    """How the data-free figures order the settings, against validation accuracy."""
    body = [[each.figure, *map(_rho, (each.all, each.robust, each.others))] for each in found]
    return table(("figure", "all settings", "RobustMerge's", "all others"), body)


def _rho(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}"


def initial_words(summary: Summary) -> Mapping[str, str]:
    """Mean accuracy of the individual adapters by initialisation."""
    found = {"independent": summary.individual(FIRST), "one A": summary.individual(SHARED)}
    return {name: _points(value) for name, value in found.items() if value is not None}


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _points(statistics.fmean(known)) if known else ""


def _points(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")

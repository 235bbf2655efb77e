"""Scores into RESULTS.md, a JSON file and a picture; what is missing is said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from results import RESULTS, write_section

from .correlation import Correlation, correlations
from .findings import write_findings
from .ledger import Ledger
from .plot import plot
from .scores import Score
from .settings import Row, read_rows
from .studies import studies
from .summary import GROUPS, Line, Summary, lines, summarize
from .tables import correlation_table, f1_table, grid_table, initial_words, main_table, study_table, task_table
from .train_order import order_of_work

FOLDER = Path(__file__).parent / "results"
TITLES = {"text": "Quality: eight text tasks merged", "vision": "Quality: image tasks merged"}
ROBUST = ("robustmerge official", "robustmerge paper", "robustmerge factor_sum")


def report(modality: str, ledger: Ledger, results: Path | None = None) -> None:
    """Write the section of a modality, and its JSON and picture beside this file, or beside `results`.

    Raises: SystemExit where nothing was evaluated.
    """
    summary, rows = summarize(ledger), read_rows(modality)
    if summary is None:
        raise SystemExit(f"{ledger.cache}: nothing is evaluated on {ledger.test_rows} test rows; `evaluate` comes first")
    table_lines, related = lines(summary, rows), correlations(ledger, rows)
    folder = results.parent / "quality" if results else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    plot(summary, table_lines, folder / f"{modality}.svg")
    document = as_document(summary, table_lines, related)
    (folder / f"{modality}.json").write_text(as_text(document))
    command = "python benchmarks/quality " + ("report" if modality == "text" else f"report --modality {modality}")
    body = "\n\n".join(part for part in _parts(modality, summary, rows, table_lines, related) if part)
    write_section(f"quality_{modality}", TITLES[modality], command, body, results or RESULTS)
    if results is None:
        write_findings(modality, summary, table_lines)


def _parts(
    modality: str, summary: Summary, rows: Sequence[Row], table_lines: Sequence[Line], related: Sequence[Correlation]
) -> Iterator[str]:
    yield _protocol(modality, summary)
    yield missing(summary, rows, table_lines)
    yield main_table(summary, table_lines)
    yield f"![Seen against unseen accuracy](quality/results/{modality}.svg)"
    initial = initial_words(summary)
    if len(initial) > 1:
        yield (
            "Individual adapters, seed 0, by initialisation: "
            + ", ".join(f"{key} {value}" for key, value in initial.items())
            + "."
        )
    yield "Accuracy on every task, mean over the seeds there are:"
    yield task_table(summary, table_lines)
    yield f1_table(summary, table_lines)
    yield "The paper's studies, seed 0, independent initialisations, test rows:"
    for question in studies({row.name: summary.ledger.choose(row) for row in rows}, summary.seen):
        yield study_table(summary, question)
    for row in rows:
        if row.name in ROBUST:
            yield grid_table(summary, row)
    if related:
        yield _ranking_words(related)
        yield correlation_table(related)


def _protocol(modality: str, summary: Summary) -> str:
    ledger = summary.ledger
    trained = ledger.adapter(GROUPS[0], summary.seen[0]) / "training.json"
    how = json.loads(trained.read_text()) if trained.exists() else {}
    training = "{rows} rows at most, {epochs} epoch(s), batch {batch}, rate {rate:g}".format(**how) if how else "trained here"
    return (
        f"{len(summary.seen)} seen tasks ({', '.join(summary.seen)}) and {len(summary.unseen)} unseen ones "
        f"({', '.join(summary.unseen)}); adapters of rank 16 on all linear layers, {training}. Accuracy on {ledger.test_rows} "
        f"test rows of each task, the same for every line: a mean over the seen tasks has a standard error of "
        f"{_error(summary):.3f} at most from that, the difference of two lines less. ± is the standard deviation over seeds. "
        f"`setting`: chosen on {ledger.choose_rows} held-back training rows of each seen task, seed 0; `untuned`: the method's "
        "default, seed 0. `rank 16`: the same setting cut to rank 16. `one A`: the same setting on adapters of one shared "
        "initialisation, seed 0. `normalised`: mean share of the individual adapter's accuracy. Without a cut nothing of the "
        "merged delta is lost: it is folded into the encoder."
    )


def _error(summary: Summary) -> float:
    return 0.5 / (summary.ledger.test_rows * len(summary.seen)) ** 0.5


def missing(summary: Summary, rows: Sequence[Row], table_lines: Sequence[Line]) -> str:
    """What of the whole benchmark is not there, in a sentence; nothing if all is."""
    ledger = summary.ledger
    wanted = order_of_work(summary.seen)
    untrained = [one for one in wanted if not ledger.ready(one.group, [one.task])]
    parts: list[str] = []
    if untrained:
        by_group: dict[str, int] = {}
        for one in untrained:
            by_group[one.group] = by_group.get(one.group, 0) + 1
        named = ", ".join(f"{group} ({count})" for group, count in by_group.items())
        parts.append(f"{len(untrained)} of {len(wanted)} adapters are not trained: {named}")
    absent = [row.name for row in rows if row.name not in {line.name for line in table_lines}]
    if absent:
        parts.append(f"not evaluated: {', '.join(absent)}")
    few = [line.name for line in table_lines if len(line.full.seen.values) < len(GROUPS)]
    if few:
        parts.append(f"{len(few)} of {len(table_lines)} methods are evaluated on fewer than {len(GROUPS)} seeds")
    untried = [line.name for line in table_lines if not line.settled]
    if untried:
        parts.append(f"not all settings tried: {', '.join(untried)}")
    return f"Missing so far: {'; '.join(parts)}. `train` and `evaluate` go on where they stopped." if parts else ""


def _ranking_words(related: Sequence[Correlation]) -> str:
    return (
        "Figures that need no data (`rmkit sweep` with `evaluate: diagnostics`; `score` is what it ranks by) against accuracy "
        f"on the validation rows: Spearman's rank correlation over {related[0].count} settings, seed 0."
    )


def as_document(summary: Summary, table_lines: Sequence[Line], related: Sequence[Correlation]) -> dict[str, Any]:
    """Everything the tables are made of: every score with its trial, the chosen settings, the correlations."""
    return {
        "format": "rmkit-quality",
        "version": 1,
        "seen": summary.seen,
        "unseen": summary.unseen,
        "test_rows": summary.ledger.test_rows,
        "validation_rows": summary.ledger.choose_rows,
        "chosen": {line.name: json.loads(line.chosen.key) for line in table_lines},
        "correlations": [{name: _number(value) for name, value in asdict(each).items()} for each in related],
        "scores": [_rounded(score) for score in summary.ledger.scores.all()],
    }


def as_text(document: dict[str, Any]) -> str:
    """The document as JSON with one line a score."""
    head = json.dumps({name: value for name, value in document.items() if name != "scores"}, indent=1, allow_nan=False)
    scores = ",\n  ".join(json.dumps(score, allow_nan=False) for score in document["scores"])
    return f'{head.removesuffix("}").rstrip()},\n "scores": [\n  {scores}\n ]\n}}\n'


def _rounded(score: Score) -> dict[str, Any]:
    figures = {
        "accuracy": {name: round(value, 4) for name, value in score.accuracy.items()},
        "macro_f1": {name: round(value, 4) for name, value in score.macro_f1.items()},
    }
    return {"trial": asdict(score.trial), **figures}


def _number(value: Any) -> Any:
    return None if value != value else value

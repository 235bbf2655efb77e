"""The parts of a report that are plain HTML: head, verdict, adapters, pairs, methods, how exact it all is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..analysis.records import Analysis, Finding, Merge, TaskInMerge, Update
from .markup import NONE, Markup, brief, cell, column, element, join, number, percent, table

_LEVELS = {"problem": "Problem", "warning": "Warning", "advice": "Advice", "good": "Good"}


def heading(report: Analysis) -> Markup:
    """Title, and in one line what was analysed."""
    own, *others = report.methods
    said = f"{len(report.adapters)} adapters, {len(report.sites)} sites, merged by {own.label}"
    if others:
        said += f", compared with {', '.join(method.label for method in others)}"
    return element("header", element("h1", report.recipe), element("p", said, class_="lead"))


def verdict(report: Analysis) -> Markup:
    """Every finding with its number, threshold and where the number stands."""
    if not report.verdict:
        return element("p", "Nothing stands out: no figure crosses a threshold.")
    return element("ol", *(_finding(report, each) for each in report.verdict), class_="verdict")


def _finding(report: Analysis, finding: Finding) -> Markup:
    threshold = report.thresholds.get(finding.threshold)
    proof = [element("code", finding.path), f" = {brief(finding.figure)}"]
    if threshold:
        proof += ["; threshold ", element("code", finding.threshold), f" {brief(threshold.value)}: {threshold.meaning}"]
    mark = element("b", _LEVELS[finding.level], class_="mark")
    body = element("div", element("p", finding.sentence), element("p", *proof, class_="proof"))
    return element("li", mark, body, class_=finding.level)


def adapters(report: Analysis) -> Markup:
    """One row per adapter."""
    updates = report.totals.updates
    norms = _numbers([update and update.norm for update in updates])
    tops = _numbers([update.spectrum[0] if update and update.spectrum else None for update in updates])
    ranks = _numbers([update and update.effective_rank for update in updates])
    rows = [
        (
            _name(facts.label, facts.reference),
            cell(_range(facts.ranks), max(facts.ranks, default=0)),
            cell(_range(facts.weights), max(facts.weights, default=0.0)),
            cell(f"{facts.sites:,}", facts.sites),
            norms[index],
            tops[index],
            ranks[index],
            *_factor_cells(updates[index]),
        )
        for index, facts in enumerate(report.adapters)
    ]
    head = (
        "adapter",
        "rank",
        "weight",
        "sites",
        "norm",
        "largest σ",
        "eff. rank",
        "rms A",
        "rms B",
        "kurtosis A",
        "kurtosis B",
    )
    return table(head, rows, "Adapters, all sites together")


def _factor_cells(update: Update | None) -> list[Markup]:
    if update is None:
        return [cell(NONE)] * 4
    return [
        *(cell(brief(value), value) for value in (update.a.rms, update.b.rms)),
        *(cell(number(value, 2), value) for value in (update.a.kurtosis, update.b.kurtosis)),
    ]


def pairs(report: Analysis) -> Markup:
    """One row per pair of adapters."""
    names = [facts.label for facts in report.adapters]
    held = report.totals.pairs
    if not held:
        return Markup()
    columns = [
        _numbers([pair.cosine for pair in held]),
        _shares([pair.sign_conflict for pair in held]),
        _shares([pair.shared_first for pair in held]),
        _shares([pair.shared_second for pair in held]),
        _shares([pair.left and pair.left.overlap for pair in held]),
        _shares([pair.right and pair.right.overlap for pair in held]),
        _numbers([pair.norm_ratio for pair in held]),
    ]
    rows = [(f"{names[pair.first]} × {names[pair.second]}", *cells) for pair, *cells in zip(held, *columns, strict=True)]
    head = (
        "pair",
        "cosine",
        "sign conflict",
        "first shared",
        "second shared",
        "overlap outputs",
        "overlap inputs",
        "norm ratio",
    )
    return table(head, rows, "Pairs, all sites together")


def methods(report: Analysis) -> Markup:
    """One row per method."""
    merges = report.totals.merges
    columns = [
        _numbers([merge.norm for merge in merges]),
        _numbers([merge.rank for merge in merges]),
        _shares([merge.kept for merge in merges]),
        _shares([merge.invented for merge in merges]),
        _shares([_mean(merge, lambda task: task.destroyed) for merge in merges]),
        _numbers([_mean(merge, lambda task: task.cosine) for merge in merges]),
        _numbers([_mean(merge, lambda task: task.projection) for merge in merges]),
    ]
    rows = [
        (_name(method.label, _settings(method.parameters, method.space, method.mixed)), *cells)
        for method, *cells in zip(report.methods, *columns, strict=True)
    ]
    head = ("method", "norm", "rank", "energy kept", "invented", "destroyed, mean", "cosine, mean", "projection, mean")
    return table(head, rows, "Methods, all sites together; means are over the adapters")


def _settings(parameters: dict[str, Any], space: str | None, mixed: bool) -> str:
    said = [f"space {space}"] if space else []
    said += [f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in parameters.items() if value is not None]
    return ", ".join([*said, *(["other methods at some sites"] if mixed else [])])


def _mean(merge: Merge, of: Callable[[TaskInMerge], float | None]) -> float | None:
    known = [value for task in merge.tasks if task for value in (of(task),) if value is not None]
    return sum(known) / len(known) if known else None


def tasks(report: Analysis) -> Markup:
    """One row per method and adapter: what the merge keeps of the adapter's update and of its directions."""
    held = [
        (method.label, facts.label, task)
        for method, merge in zip(report.methods, report.totals.merges, strict=True)
        for facts, task in zip(report.adapters, merge.tasks, strict=True)
        if task
    ]
    each = [task for *_, task in held]
    columns = [
        _shares([task.destroyed for task in each]),
        _numbers([task.cosine for task in each]),
        _numbers([task.projection for task in each]),
        _numbers([task.crosstalk for task in each]),
        _numbers([task.top.left for task in each]),
        _numbers([task.top.right for task in each]),
        _numbers([task.top.ratio for task in each]),
        _numbers([task.rest and task.rest.left for task in each]),
        _numbers([task.rest and task.rest.right for task in each]),
        _numbers([task.rest and task.rest.ratio for task in each]),
    ]
    rows = [(adapter, method, *cells) for (method, adapter, _), *cells in zip(held, *columns, strict=True)]
    head = ("adapter", "method", "destroyed", "cosine", "projection", "crosstalk")
    head += ("top, output", "top, input", "top, ratio", "rest, output", "rest, input", "rest, ratio")
    return table(head, rows, "Every adapter in every merge, all sites together", text=(0, 1))


def fine_print(report: Analysis) -> Markup:
    """Thresholds, exactness, pruning and notes."""
    thresholds = [
        (element("code", name), cell(brief(each.value), each.value), each.meaning) for name, each in report.thresholds.items()
    ]
    exact = [
        (each.figures, each.how, cell("rounding" if each.error is None else brief(each.error), each.error))
        for each in report.exactness
    ]
    parts = [table(("threshold", "value", "meaning"), thresholds, "Thresholds of the verdict", text=(0, 2))]
    parts.append(table(("figures", "how", "error"), exact, "How exact the figures are", text=(0, 1)))
    parts.append(element("p", f"Spectra called pruned and scaled: RobustMerge with {_settings(report.pruning, None, False)}."))
    if report.notes:
        parts.append(element("ul", *(element("li", note) for note in report.notes)))
    return join(parts)


def _name(label: str, below: str) -> Markup:
    return join([label, element("small", below)]) if below and below != label else join([label])


def _numbers(values: Sequence[float | None]) -> list[Markup]:
    return [cell(text, value) for text, value in zip(column(values), values, strict=True)]


def _shares(values: Sequence[float | None]) -> list[Markup]:
    return [cell(percent(value), value) for value in values]


def _range(values: Sequence[float]) -> str:
    if not values:
        return NONE
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"

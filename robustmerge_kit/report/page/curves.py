"""The charts of a report: energy against rank, spectra, values of the factors, angles, directions in the merge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..analysis.records import Analysis, FactorValues, Pair, TaskInMerge
from .charts import Axis, Line, dot_chart, key_of, legend, line_chart
from .markup import Markup, element, join, whole_percent

MOST_LABELLED = 6
"""Pairs up to which every curve has its own colour and its line in the legend."""

ENOUGH = 0.9
"""The level drawn across the energy curves: below it a rank limit loses more than a tenth."""


def figure(title: str, chart: str, *below: str) -> Markup:
    """A chart with its title."""
    return element("figure", element("figcaption", title), chart, *below)


def grid(figures: Sequence[Markup]) -> Markup:
    """Charts side by side, as many as fit."""
    return element("div", *figures, class_="charts")


def energy(report: Analysis) -> Markup:
    """Energy kept against output rank, one curve per method."""
    lines = [
        Line(method.label, [(0.0, 0.0), *((k + 1.0, share) for k, share in enumerate(merge.energy))], index)
        for index, (method, merge) in enumerate(zip(report.methods, report.totals.merges, strict=True))
    ]
    longest = max((len(line.points) - 1 for line in lines), default=1)
    x = Axis("output rank", 0.0, float(max(1, longest)))
    y = Axis("energy kept", 0.0, 1.0, show=whole_percent)
    chart = line_chart("Energy kept against the output's rank", lines, x, y, (ENOUGH, "90 %"))
    return figure("Energy kept against output rank", chart, key_of(lines))


def spectra(report: Analysis) -> Markup:
    """Singular values of every adapter, as they are, pruned, pruned and scaled; one scale for all."""
    known = [(facts.label, update) for facts, update in zip(report.adapters, report.totals.updates, strict=True) if update]
    values = [value for _, update in known for value in (*update.spectrum, *update.pruned, *update.scaled) if value > 0]
    if not values:
        return Markup()
    most = max(values)
    y = Axis("singular value", max(min(values), most * 1e-4), most, logarithmic=True)
    x = Axis("direction", 1.0, float(max(2, max(len(update.spectrum) for _, update in known))))
    kinds = [("as trained", "s0"), ("pruned", "s1"), ("pruned and scaled", "s2")]
    charts = [
        figure(
            label,
            line_chart(
                f"Singular values of {label}",
                [
                    Line(name, [(k + 1.0, value) for k, value in enumerate(curve) if value > 0], style)
                    for style, (name, curve) in enumerate(
                        (("as trained", update.spectrum), ("pruned", update.pruned), ("scaled", update.scaled))
                    )
                ],
                x,
                y,
            ),
        )
        for label, update in known
    ]
    return join([legend(kinds), grid(charts)])


def factor_values(report: Analysis) -> Markup:
    """How the values of A and B are distributed, in units of their rms, one chart per adapter."""
    edges = report.totals.bins
    known = [(facts.label, update) for facts, update in zip(report.adapters, report.totals.updates, strict=True) if update]
    most = max((share for _, update in known for values in (update.a, update.b) for share in values.histogram), default=0.0)
    if not most or len(edges) < 2:
        return Markup()
    x, y = Axis("value / rms", edges[0], edges[-1]), Axis("share", 0.0, most, show=whole_percent)
    charts = [
        figure(
            label,
            line_chart(f"Values of {label}", [_histogram("A", update.a, edges, 0), _histogram("B", update.b, edges, 1)], x, y),
        )
        for label, update in known
    ]
    return join([legend([("A", "s0"), ("B", "s1")]), grid(charts)])


def _histogram(name: str, values: FactorValues, edges: Sequence[float], style: int) -> Line:
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return Line(name, list(zip(middles, values.histogram, strict=False)), style)


def angles(report: Analysis) -> Markup:
    """Principal angles of every pair, outputs and inputs."""
    pairs = [pair for pair in report.totals.pairs if pair.angles_left or pair.angles_right]
    if not pairs:
        return Markup()
    names = [facts.label for facts in report.adapters]
    few = len(pairs) <= MOST_LABELLED

    def lines(side: str) -> list[Line]:
        return [_angles(pair, side, names, index if few else 0) for index, pair in enumerate(pairs)]

    longest = max(max(len(pair.angles_left), len(pair.angles_right)) for pair in pairs)
    x, y = Axis("k-th angle", 1.0, float(max(2, longest))), Axis("degrees", 0.0, 90.0, step=30.0)
    charts = [figure("outputs (left directions)", line_chart("Principal angles of outputs", lines("left"), x, y))]
    charts.append(figure("inputs (right directions)", line_chart("Principal angles of inputs", lines("right"), x, y)))
    return join([key_of(lines("left")), grid(charts)]) if few else element("div", grid(charts), class_="faint")


def _angles(pair: Pair, side: str, names: Sequence[str], style: int) -> Line:
    held = pair.angles_left if side == "left" else pair.angles_right
    return Line(f"{names[pair.first]} × {names[pair.second]}", [(k + 1.0, angle) for k, angle in enumerate(held)], style)


def robustness(report: Analysis) -> Markup:
    """Direction robustness: per method one row of marks per adapter, |cosine| of directions and ratio of singular values."""
    names = [facts.label for facts in report.adapters]
    room = min(130.0, 16.0 + 6.2 * max(map(len, names), default=0))
    tasks = [task for merge in report.totals.merges for task in merge.tasks if task]
    if not tasks:
        return Markup()
    cosine, ratio = Axis("|cosine| with the merged direction", 0.0, 1.0), _ratio_axis(tasks)
    kinds = [("top, output", "top out"), ("top, input", "top in"), ("rest, output", "rest out"), ("rest, input", "rest in")]
    directions, sizes = [], []
    for method, merge in zip(report.methods, report.totals.merges, strict=True):
        there = [(name, task) for name, task in zip(names, merge.tasks, strict=True) if task]
        cosines = [(name, _cosines(task)) for name, task in there]
        ratios = [(name, _ratios(task)) for name, task in there]
        directions.append(figure(method.label, dot_chart(f"Directions in {method.label}", cosines, cosine, room)))
        sizes.append(figure(method.label, dot_chart(f"Singular values in {method.label}", ratios, ratio, room)))
    return join(
        [
            element("h3", "Are its directions still there?"),
            legend(kinds),
            grid(directions),
            element("h3", "How large are they still?"),
            legend([("top", "top out"), ("rest, mean", "rest out")]),
            grid(sizes),
        ]
    )


def _ratio_axis(tasks: Sequence[TaskInMerge]) -> Axis:
    """Three decades at most, with 1 among them; a ratio of 0 stands at the low end."""
    ratios = [direction.ratio for task in tasks for direction in (task.top, task.rest) if direction]
    high = max(1.25, *ratios)
    low = max(high * 1e-3, min([0.8, *(ratio for ratio in ratios if ratio > 0)]))
    return Axis("merged / original singular value", low, high, logarithmic=True)


def _cosines(task: TaskInMerge) -> list[tuple[str, float, str]]:
    marks = [("top, output", task.top.left, "top out"), ("top, input", task.top.right, "top in")]
    if task.rest:
        marks += [("rest, output", task.rest.left, "rest out"), ("rest, input", task.rest.right, "rest in")]
    return marks


def _ratios(task: TaskInMerge) -> list[tuple[str, float, str]]:
    rest = [("rest, mean", task.rest.ratio, "rest out")] if task.rest else []
    return [("top", task.top.ratio, "top out"), *rest]

"""One picture of the main table: accuracy on seen against accuracy on unseen tasks, a point a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .summary import Line, Summary


def plot(summary: Summary, lines: Sequence[Line], path: Path) -> None:
    """Write an SVG; RobustMerge's variants stand out, bars are standard deviations over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "rmkit", "svg.fonttype": "none", "font.size": 8})
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for line in lines:
        robust = line.name.startswith("robustmerge")
        x, y = line.full.unseen, line.full.seen
        spread = {"xerr": _deviation(x.values), "yerr": _deviation(y.values)}
        axes.errorbar(x.mean, y.mean, **spread, fmt="o", ms=5 if robust else 3, lw=0.6, color="C3" if robust else "C0")
        axes.annotate(line.name, (x.mean, y.mean), xytext=(3, 2), textcoords="offset points", fontsize=6)
    zero = summary.ledger.zero_shot()
    if zero is not None:
        axes.plot(zero.mean(summary.unseen), zero.mean(summary.seen), "k^", label="zero-shot")
    both = summary.multitask()
    if both.seen:
        axes.plot(both.unseen.mean, both.seen.mean, "k*", ms=9, label="multi-task")
    axes.set_xlabel("accuracy, unseen tasks")
    axes.set_ylabel("accuracy, seen tasks")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0

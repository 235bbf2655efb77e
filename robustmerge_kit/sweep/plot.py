"""The picture of a sweep: scores in the order of the trials, and against every value that was searched."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, UsageError
from ..report.pictures import COLOURS, SETTINGS, can_draw, label_of, sheet
from .run import Result
from .trials import Trial, better

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
MOST_PANELS = 11

_DPI = 120


def check_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn.

    Raises: UsageError.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: no such kind of picture", hint=f"let the name end in {', '.join(FORMATS)}")
    if not can_draw():
        raise UsageError("pictures need matplotlib, which is not installed", hint='pip install "robustmerge-kit[plots]"')


def plot(result: Result, path: Path) -> bool:
    """Draw the picture into a file; False where no trial has a score.

    Raises: OutputError when the disk refuses.
    """
    import matplotlib as mpl

    trials = [trial for trial in result.trials if trial.score is not None]
    if not trials:
        return False
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))[:MOST_PANELS]
    columns = min(3, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        # letters that the font lacks become boxes
        warnings.simplefilter("ignore")
        drawing, axes = sheet(rows, columns, 3.3 * columns, 2.6 * rows + 0.2)
        _course(axes[0], trials, result.maximize)
        for place, name in zip(axes[1:], names, strict=False):
            _against(place, trials, name, result.best)
        for place in axes[1 + len(names) :]:
            place.set_axis_off()
        try:
            drawing.savefig(path, dpi=_DPI)
        except OSError as error:
            raise OutputError.from_os(error, path) from error
    return True


def _course(axes: Axes, trials: Sequence[Trial], maximize: bool) -> None:
    """Every score, and the best so far."""
    best: list[float] = []
    for trial in trials:
        score = trial.score or 0.0
        best.append(score if not best or better(score, best[-1], maximize) else best[-1])
    numbers = [trial.number for trial in trials]
    axes.plot(numbers, [trial.score or 0.0 for trial in trials], "o", ms=3.5, color=COLOURS[0], label="score")
    axes.step(numbers, best, where="post", color=COLOURS[1], lw=1.4, label="best so far")
    axes.set(title="trials", xlabel="trial", ylabel="score")
    axes.legend()


def _against(axes: Axes, trials: Sequence[Trial], name: str, best: Trial | None) -> None:
    """Scores against one value, the best in another colour; what is no number has a place of its own."""
    known = [trial for trial in trials if name in trial.params]
    values: list[Any] = [trial.params[name] for trial in known]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    texts = [] if numeric else list(dict.fromkeys(_text(value) for value in values))
    places = values if numeric else [texts.index(_text(value)) for value in values]
    axes.plot(places, [trial.score or 0.0 for trial in known], "o", ms=3.5, color=COLOURS[0])
    if best in known:
        axes.plot([places[known.index(best)]], [best.score or 0.0], "o", ms=6, color=COLOURS[1])
    axes.set_title(label_of(name, 36))
    if numeric and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_xscale("log")
    if texts:
        axes.set_xticks(range(len(texts)), [label_of(text, 18) for text in texts], rotation=20, ha="right")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

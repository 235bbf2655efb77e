"""The pictures of an analysis as PNG files, drawn with matplotlib, which is an optional extra."""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, UsageError
from ..output.grid import Panel, lay_out
from .analysis.records import Analysis, Pair, Site, Update

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
FAINT = 0.1
"""The least value that gets the full colour: what is all close to nothing must not look like a conflict."""

MOST_ROWS = 48
"""Modules drawn of a stack of layers."""

_LEAST_ROWS = 3
"""Room of a stack with few modules, so that a colour scale fits beside it."""

_INK, _SOFT, _RULE = "#17212b", "#55626e", "#dbe1e7"
COLOURS = ("#0b5c8f", "#c05a00", "#2b7a5b", "#8a4a9e", "#7a6a00", "#b0325f", "#55626e", "#1a8aa8")
_DASHES = ("-", "--", ":", "-.")
SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _SOFT,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def can_draw() -> bool:
    """Whether matplotlib is installed; it is not imported for the answer."""
    return importlib.util.find_spec("matplotlib") is not None


def write_pictures(report: Analysis, folder: Path) -> list[Path]:
    """Draw every picture the report has figures for into the folder; the files written.

    Raises: UsageError where matplotlib is not installed, OutputError when the disk refuses.
    """
    if not can_draw():
        raise UsageError("pictures need matplotlib, which is not installed", hint='pip install "robustmerge-kit[plots]"')
    import matplotlib as mpl

    drawings: Mapping[str, Callable[[Analysis], Figure | None]] = {
        "pairs.png": _pairs,
        "layers.png": _layers,
        "directions.png": _directions,
        "energy.png": _energy,
        "angles.png": _angles,
        "spectra.png": _spectra,
        "factors.png": _factors,
    }
    written: list[Path] = []
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        # letters that the font lacks become boxes
        warnings.simplefilter("ignore")
        for name, draw in drawings.items():
            drawing = draw(report)
            if drawing is None:
                continue
            path = folder / name
            try:
                drawing.savefig(path, dpi=DPI, metadata={"Software": f"rmkit {report.rmkit}"})
            except OSError as error:
                raise OutputError.from_os(error, path) from error
            written.append(path)
    return written


# --- between two adapters ---------------------------------------------------------------------------------------------


def _pairs(report: Analysis) -> Figure | None:
    """Cosine and sign conflict of every two adapters."""
    count = len(report.adapters)
    if count < 2:
        return None
    names = [label_of(facts.label, 22) for facts in report.adapters]
    side = max(2.6, 0.45 * count + 1.6)
    drawing, axes = sheet(1, 2, 2 * side + 1.6, side)
    cosine = _both(report.totals.pairs, count, lambda pair: pair.cosine)
    conflict = _both(report.totals.pairs, count, lambda pair: pair.sign_conflict)
    _matrix(axes[0], "cosine", names, cosine, _ramp(signed=True), 0.0)
    _matrix(axes[1], "sign conflict, 0.5 is chance", names, conflict, _ramp(signed=True).reversed(), 0.5)
    return drawing


def _both(pairs: Sequence[Pair], count: int, of: Callable[[Pair], float | None]) -> list[list[float]]:
    table = [[math.nan] * count for _ in range(count)]
    for pair in pairs:
        value = of(pair)
        if value is not None:
            table[pair.first][pair.second] = table[pair.second][pair.first] = value
    return table


def _matrix(axes: Axes, title: str, names: Sequence[str], table: list[list[float]], ramp: Any, middle: float) -> None:
    far = max([FAINT, *(abs(value - middle) for row in table for value in row if not math.isnan(value))])
    axes.imshow(table, cmap=ramp, vmin=middle - far, vmax=middle + far)
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            if not math.isnan(value):
                ink = "white" if abs(value - middle) > 0.7 * far else _INK
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_xticks(range(len(names)), [str(i + 1) for i in range(len(names))])
    axes.set_yticks(range(len(names)), [f"{name} {i + 1}" for i, name in enumerate(names)])
    axes.set_title(title)
    _bare(axes)


def _angles(report: Analysis) -> Figure | None:
    """Principal angles of every two adapters."""
    pairs = [pair for pair in report.totals.pairs if pair.angles_left or pair.angles_right]
    if not pairs:
        return None
    drawing, axes = sheet(1, 2, 8.6, 3.2)
    for index, pair in enumerate(pairs):
        name = f"{report.adapters[pair.first].label} × {report.adapters[pair.second].label}"
        for place, held in zip(axes, (pair.angles_left, pair.angles_right), strict=True):
            _curve(place, range(1, len(held) + 1), held, index, label_of(name, 48))
    for place, side in zip(axes, ("outputs (left directions)", "inputs (right directions)"), strict=True):
        place.set(
            title=f"principal angles, {side}", xlabel="k-th angle", ylabel="degrees", ylim=(0, 90), yticks=(0, 30, 60, 90)
        )
    _shared_legend(drawing, axes[0], len(pairs))
    return drawing


# --- layer by layer ---------------------------------------------------------------------------------------------------


def _layers(report: Analysis) -> Figure | None:
    """At every site the most negative cosine of two adapters, and how much the recipe's method destroys on average."""
    panels = lay_out([site.site for site in report.sites])
    if not panels:
        return None
    figures: list[tuple[str, list[float | None], bool]] = [
        ("least cosine of two adapters", [_least_cosine(site) for site in report.sites], True),
        (
            f"destroyed by {label_of(report.methods[0].label, 40)}, mean over the adapters",
            [_destroyed(site) for site in report.sites],
            False,
        ),
    ]
    known = [(title, values, signed) for title, values, signed in figures if any(value is not None for value in values)]
    if not known:
        return None
    heights = [max(_LEAST_ROWS, min(MOST_ROWS, len(panel.modules))) + 2.0 for _ in known for panel in panels]
    drawing, axes = sheet(len(heights), 1, 9.0, 0.17 * sum(heights) + 0.4, heights)
    widest = max(12, *(len(panel.layers) for panel in panels))
    for at, (title, values, signed) in enumerate(known):
        places = axes[at * len(panels) : (at + 1) * len(panels)]
        most = max([FAINT, *(abs(value) for value in values if value is not None)])
        for place, panel in zip(places, panels, strict=True):
            drawn = place.imshow(
                _table(panel, values), cmap=_ramp(signed), vmin=-most if signed else 0.0, vmax=most, aspect="auto"
            )
            _name_cells(place, panel)
            place.set_xlim(-0.5, widest - 0.5)
            place.set_title(
                label_of(panel.name or "outside the layers", 60) if len(panels) > 1 else "", fontsize=8, fontweight="normal"
            )
            colours = drawing.colorbar(drawn, ax=place, fraction=0.03, pad=0.01, aspect=8) if place is places[0] else None
            if colours is not None:
                colours.ax.tick_params(labelsize=7)
        places[0].set_title(f"{title}, {label_of(panels[0].name, 60)}" if panels[0].name else title)
    return drawing


def _table(panel: Panel, values: Sequence[float | None]) -> list[list[float]]:
    """The value of every cell, the mean where several sites share one."""
    table = [[math.nan] * len(panel.layers) for _ in panel.modules[:MOST_ROWS]]
    for (row, column), members in panel.cells.items():
        known = [value for value in (values[site] for site in members) if value is not None]
        if row < len(table) and known:
            table[row][column] = sum(known) / len(known)
    return table


def _name_cells(axes: Axes, panel: Panel) -> None:
    rows = panel.modules[:MOST_ROWS]
    step = max(1, math.ceil(len(panel.layers) / 24))
    axes.set_xticks(range(0, len(panel.layers), step), [label_of(layer, 8) for layer in panel.layers[::step]])
    axes.set_yticks(range(len(rows)), [label_of(name, 26) for name in rows])
    axes.tick_params(labelsize=7)
    _bare(axes)


def _least_cosine(site: Site) -> float | None:
    return min((pair.cosine for pair in site.pairs if pair.cosine is not None), default=None)


def _destroyed(site: Site) -> float | None:
    known = [task.destroyed for task in site.merges[0].tasks if task] if site.merges else []
    return sum(known) / len(known) if known else None


# --- what a merge does ------------------------------------------------------------------------------------------------


def _directions(report: Analysis) -> Figure | None:
    """Direction robustness: |cosine| of every adapter's directions to the merged ones, and the ratio of singular values."""
    from matplotlib.ticker import LogLocator

    merges = report.totals.merges
    if not any(task for merge in merges for task in merge.tasks):
        return None
    names = [label_of(facts.label, 22) for facts in report.adapters]
    ratios = [
        direction.ratio for merge in merges for task in merge.tasks if task for direction in (task.top, task.rest) if direction
    ]
    most = max(1.25, *ratios)
    least = max(most * 1e-3, min([0.8, *(value for value in ratios if value > 0)]))
    high = 0.22 * len(names) + 0.5
    drawing, axes = sheet(len(merges), 2, 9.0, high * len(merges) + 0.9)
    for index, (method, merge) in enumerate(zip(report.methods, merges, strict=True)):
        cosine, ratio = axes[2 * index], axes[2 * index + 1]
        for row, task in enumerate(merge.tasks):
            if task is None:
                continue
            for direction, filled in ((task.top, True), (task.rest, False)):
                if direction is None:
                    continue
                for value, colour in ((direction.left, COLOURS[0]), (direction.right, COLOURS[1])):
                    _dot(cosine, value, row, colour, filled)
                _dot(ratio, max(least, direction.ratio), row, COLOURS[0], filled)
        cosine.set_yticks(range(len(names)), names)
        ratio.set_yticks(range(len(names)), [""] * len(names))
        for place in (cosine, ratio):
            place.set_ylim(len(names) - 0.5, -0.5)
        cosine.set(title=label_of(method.label, 40), xlim=(-0.02, 1.02))
        ratio.set(xscale="log", xlim=(least / 1.1, most * 1.1))
        ratio.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ratio.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ratio.minorticks_off()
        if index + 1 < len(merges):
            cosine.tick_params(labelbottom=False)
            ratio.tick_params(labelbottom=False)
    axes[-2].set_xlabel("|cosine| with the merged direction")
    axes[-1].set_xlabel("merged / original singular value")
    marks = (("top, output", 0, True), ("top, input", 1, True), ("rest, output", 0, False), ("rest, input", 1, False))
    handles = [_dot(axes[0], math.nan, math.nan, COLOURS[colour], filled, label) for label, colour, filled in marks]
    drawing.legend(handles=handles, loc="outside upper right", ncols=4)
    return drawing


def _dot(axes: Axes, x: float, y: float, colour: str, filled: bool, label: str | None = None) -> Any:
    (drawn,) = axes.plot([x], [y], "o", ms=5, color=colour, mfc=colour if filled else "white", mew=1.4, label=label)
    return drawn


def _energy(report: Analysis) -> Figure | None:
    """Energy kept against output rank, one curve per method."""
    held = [
        (method.label, merge.energy) for method, merge in zip(report.methods, report.totals.merges, strict=True) if merge.energy
    ]
    if not held:
        return None
    drawing, (axes,) = sheet(1, 1, 5.4, 3.6)
    for index, (name, energy) in enumerate(held):
        _curve(axes, range(len(energy) + 1), (0.0, *energy), index, label_of(name, 40))
    axes.axhline(0.9, color=_SOFT, lw=0.8, ls=(0, (3, 3)))
    axes.set(
        title="energy kept by the first directions",
        xlabel="output rank",
        ylabel="share of the squared norm",
        ylim=(0, 1.02),
        xlim=(0, None),
    )
    axes.legend(loc="lower right")
    return drawing


# --- one adapter ------------------------------------------------------------------------------------------------------


def _spectra(report: Analysis) -> Figure | None:
    """Singular values of every adapter before and after pruning and scaling, on one scale."""
    from matplotlib.ticker import MaxNLocator

    updates = [update for update in report.totals.updates if update]
    values = [value for update in updates for value in (*update.spectrum, *update.pruned, *update.scaled) if value > 0]
    if not values:
        return None
    longest = max(len(update.spectrum) for update in updates)
    low, high = max(min(values), max(values) * 1e-4) / 1.5, max(values) * 1.5

    def draw(axes: Axes, update: Update) -> None:
        for index, (name, values) in enumerate(
            (("as trained", update.spectrum), ("pruned", update.pruned), ("pruned and scaled", update.scaled))
        ):
            shown = [(k + 1, value) for k, value in enumerate(values) if value > 0]
            _curve(axes, [k for k, _ in shown], [value for _, value in shown], index, name)
        axes.set(yscale="log", ylim=(low, high), xlim=(0.5, longest + 0.5), xlabel="direction", ylabel="singular value")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))

    return _small_multiples(report, draw, 3, lambda update: any(value > 0 for value in update.spectrum))


def _factors(report: Analysis) -> Figure | None:
    """How the values of A and B are distributed, in units of their rms."""
    middles = [(low + high) / 2 for low, high in pairwise(report.totals.bins)]
    held = [values for update in report.totals.updates if update for values in (update.a, update.b)]
    most = max((share for values in held for share in values.histogram), default=0.0) or 1.0

    def draw(axes: Axes, update: Update) -> None:
        for index, (name, held) in enumerate((("A", update.a), ("B", update.b))):
            if held.histogram:
                _curve(axes, middles, held.histogram, index, name)
        axes.set(xlabel="value / rms", ylabel="share of values", ylim=(0, 1.05 * most))

    return _small_multiples(report, draw, 2, lambda update: bool(update.a.histogram or update.b.histogram))


def _small_multiples(
    report: Analysis, draw: Callable[[Axes, Update], None], lines: int, has: Callable[[Update], bool]
) -> Figure | None:
    """One chart per adapter that has something to show, three in a row, one legend."""
    known = [
        (facts.label, update)
        for facts, update in zip(report.adapters, report.totals.updates, strict=True)
        if update and has(update)
    ]
    if not known:
        return None
    columns = min(3, len(known))
    rows = math.ceil(len(known) / columns)
    drawing, axes = sheet(rows, columns, 3.1 * columns, 2.5 * rows + 0.3)
    for place, (name, update) in zip(axes, known, strict=False):
        draw(place, update)
        place.set_title(label_of(name, 34))
    for index, place in enumerate(axes):
        if index >= len(known):
            place.set_axis_off()
        if index % columns:
            place.tick_params(labelleft=False)
            place.set_ylabel("")
        if index + columns < len(known):
            place.tick_params(labelbottom=False)
            place.set_xlabel("")
    _shared_legend(drawing, axes[0], lines)
    return drawing


# --- paper and pens ---------------------------------------------------------------------------------------------------


def sheet(
    rows: int, columns: int, width: float, height: float, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    table = drawing.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights} if heights else None)
    return drawing, [axes for row in table for axes in row]


def _curve(axes: Axes, x: Sequence[float], y: Sequence[float], index: int, label: str) -> None:
    axes.plot(x, y, color=COLOURS[index % len(COLOURS)], ls=_DASHES[index % len(_DASHES)], lw=1.4, label=label)


def _shared_legend(drawing: Figure, axes: Axes, lines: int) -> None:
    """One legend for all charts; more than eight lines cannot be told apart by one."""
    if lines <= len(COLOURS):
        drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, lines))


def _ramp(signed: bool) -> Any:
    """Orange against blue about zero, or one orange ramp: what conflicts or is lost."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ("#b04a00", "#f0f3f6", "#0b4a7a") if signed else ("#f0f3f6", "#b04a00")
    ramp = LinearSegmentedColormap.from_list("signed" if signed else "lost", stops)
    ramp.set_bad("white")
    return ramp


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def label_of(text: str, most: int) -> str:
    """A name as the font can draw it, at most so many letters, the middle left out."""
    shown = _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)
    return shown if len(shown) <= most else f"{shown[: most // 2]}…{shown[-(most // 2 - 1) :]}"

"""The picture of a model card: what the merge wrote, layer by module, as one small SVG."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from .grid import Panel, lay_out

WIDTH = 760
MOST_ROWS = 64
"""Rows drawn of a panel; what is left out is named below it."""

_LOW, _HIGH = (0xEE, 0xF3, 0xF8), (0x0B, 0x3C, 0x5D)
"""Ends of the colour scale: one hue, so that lightness alone carries the value."""

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STYLE = (
    "text{font:11px ui-sans-serif,system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#44505c}"
    ".h{font-size:13px;font-weight:600;fill:#17212b}.e{text-anchor:end}.m{text-anchor:middle}"
)
_EDGE = 16
_LABELS = 168
_LETTER = 6.1
"""Width of a letter of the small text; layout must not depend on the fonts of whoever looks."""


@dataclass(frozen=True)
class Map:
    """One figure as a heat map: the value of every cell, by panel. `low` and `high` are the ends of its scale."""

    title: str
    cells: Sequence[Mapping[tuple[int, int], float]]
    low: float
    high: float
    show: Callable[[float], str]


def picture(content: Mapping[str, Any]) -> str:
    """An SVG of a receipt's sites: the norm of the merged update, and the energy kept where the rank limit cut something.

    It holds its own background, so that it can be read in light and dark pages, and names of sites as text, never as markup.
    """
    sites = [str(site["site"]) for site in content["sites"]]
    panels = lay_out(sites)
    parts: list[str] = []
    top = float(_EDGE)
    for each in _maps(content, panels):
        drawn, top = _map(each, sites, panels, top)
        parts += drawn
    height = round(top)
    label = f"Heat maps over {len(sites)} sites of the merged adapter"
    frame = f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fff"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img" aria-label="{label}">',
            f"<style>{_STYLE}</style>",
            frame,
            *parts,
            "</svg>\n",
        ]
    )


def _maps(content: Mapping[str, Any], panels: Sequence[Panel]) -> list[Map]:
    totals = content["totals"]
    norms = _joined([float(site["norm"]) for site in content["sites"]], panels, _root_of_squares)
    kept = _joined([float(site["retained"]) for site in content["sites"]], panels, _mean)
    most = max((value for cells in norms for value in cells.values()), default=0.0)
    least = min((value for cells in kept for value in cells.values()), default=1.0)
    maps = [Map(f"Norm of the merged update, {totals['norm']:.3g} in all", norms, 0.0, most, "{:.3g}".format)]
    # what rounds to 100.0 % has nothing to show
    if least < 0.9995:
        title = f"Energy kept by the rank limit, {totals['retained_energy']:.1%} in all"
        maps.append(Map(title, kept, least, 1.0, "{:.1%}".format))
    return maps


def _joined(
    values: Sequence[float], panels: Sequence[Panel], join: Callable[[Sequence[float]], float]
) -> list[dict[tuple[int, int], float]]:
    """The value of every cell: that of its site, or of all its sites together."""
    return [{where: join([values[i] for i in members]) for where, members in panel.cells.items()} for panel in panels]


def _map(figure: Map, sites: Sequence[str], panels: Sequence[Panel], top: float) -> tuple[list[str], float]:
    """The elements of one heat map from `top` down, and where it ends."""
    parts = [_text(figure.title, _EDGE, top + 11, "h"), *_legend(figure, top)]
    top += 26
    several = len(panels) > 1
    for panel, cells in zip(panels, figure.cells, strict=True):
        if several:
            parts.append(_text(_shorten(panel.name or "outside the layers", 110), _EDGE, top + 11))
            top += 18
        drawn, top = _panel(figure, cells, sites, panel, top)
        parts += drawn
    return parts, top + _EDGE / 2


def _panel(
    figure: Map, cells: Mapping[tuple[int, int], float], sites: Sequence[str], panel: Panel, top: float
) -> tuple[list[str], float]:
    left = _EDGE + _LABELS
    wide = min(34.0, (WIDTH - _EDGE - left) / len(panel.layers))
    high = 14.0
    gap = 1.0 if wide >= 5 else 0.0
    rows = panel.modules[:MOST_ROWS]
    parts = [_text(_shorten(name, 24), left - 8, top + row * high + 10.5, "e") for row, name in enumerate(rows)]
    for (row, column), value in cells.items():
        if row >= len(rows):
            continue
        place = f'x="{_number(left + column * wide)}" y="{_number(top + row * high)}"'
        size = f'width="{_number(wide - gap)}" height="{_number(high - 1)}"'
        title = f"{_escape(_shorten(_name(panel, row, column, sites), 200))}: {figure.show(value)}"
        parts.append(f'<rect {place} {size} fill="{_colour(figure, value)}"><title>{title}</title></rect>')
    top += len(rows) * high
    if panel.name:
        parts += [
            _text(_shorten(panel.layers[column], 12), left + (column + 0.5) * wide, top + 12, "m")
            for column in _labelled(panel.layers, wide)
        ]
        parts.append(_text("layer", left - 8, top + 12, "e"))
        top += 18
    if len(panel.modules) > len(rows):
        parts.append(_text(f"and {len(panel.modules) - len(rows)} more modules, see rmkit.json", left, top + 12))
        top += 18
    return parts, top + 8


def _name(panel: Panel, row: int, column: int, sites: Sequence[str]) -> str:
    members = panel.cells[row, column]
    if len(members) == 1:
        return sites[members[0]]
    return f"{panel.modules[row]}, layer {panel.layers[column]}, {len(members)} sites"


def _labelled(layers: Sequence[str], wide: float) -> Iterator[int]:
    """Columns whose number is written: as many as have room, at even steps."""
    need = min(12, max(len(layer) for layer in layers)) * _LETTER + 8
    step = next(step for step in _steps() if step * wide >= need)
    return iter(range(0, len(layers), step))


def _steps() -> Iterator[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def _legend(figure: Map, top: float) -> list[str]:
    """The colour scale with its ends, at the right edge beside the title."""
    steps, wide = 12, 8
    right = WIDTH - _EDGE - 6 - 1.1 * _LETTER * len(figure.show(figure.high))
    parts = [_text(figure.show(figure.high), WIDTH - _EDGE, top + 11, "e")]
    for step in range(steps):
        value = figure.low + (figure.high - figure.low) * step / (steps - 1)
        x = right - (steps - step) * wide
        parts.append(
            f'<rect x="{_number(x)}" y="{_number(top + 2)}" width="{wide}" height="10" fill="{_colour(figure, value)}"/>'
        )
    return [*parts, _text(figure.show(figure.low), right - steps * wide - 6, top + 11, "e")]


def _colour(figure: Map, value: float) -> str:
    span = figure.high - figure.low
    share = min(1.0, max(0.0, (value - figure.low) / span)) if span > 0 else 0.0
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_LOW, _HIGH, strict=True))


def _root_of_squares(values: Sequence[float]) -> float:
    return sum(value * value for value in values) ** 0.5


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _text(text: str, x: float, y: float, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{_number(x)}" y="{_number(y)}"{named}>{_escape(text)}</text>'


def _escape(text: str) -> str:
    """Text for XML, without the characters that it cannot hold."""
    return escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text))


def _shorten(text: str, most: float) -> str:
    """At most so many letters, the middle left out: the ends of a module's name say most."""
    if len(text) <= most:
        return text
    side = (int(most) - 1) // 2
    return f"{text[:side]}…{text[-side:]}"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")

"""Line and dot charts as SVG that the page's style sheet colours; they need no script, and points say their values on hover."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .markup import Markup, brief, element, shorten

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 34
_MOST_POINTS = 48
_STYLES = 8
"""Line styles of the style sheet, `s0` and so on."""


@dataclass(frozen=True)
class Line:
    """A curve; `points` are (x, y), `style` picks colour and dashes."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int


@dataclass(frozen=True)
class Axis:
    """A range and how it is written. On a logarithmic axis values must be positive. step: of the ticks, None: a round one."""

    label: str
    low: float
    high: float
    logarithmic: bool = False
    step: float | None = None
    show: Callable[[float], str] = brief

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end; values outside stay at the end."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5

    def ticks(self) -> list[float]:
        """A few round values within the range."""
        return _powers(self.low, self.high) if self.logarithmic else _steps(self.low, self.high, self.step)


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten, every few where there are many; 1, 2 and 5 times them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if math.log10(high / low) > 2.5:
        step = math.ceil((last - first) / 5)
        ticks = [10.0**exponent for exponent in range(first, last + 1, step)]
    else:
        ticks = [factor * 10.0**exponent for exponent in range(first, last + 1) for factor in (1, 2, 5)]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001] or [low, high]


def _steps(low: float, high: float, step: float | None) -> list[float]:
    if high <= low:
        return [low]
    if step is None:
        raw = (high - low) / 4
        scale = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(name: str, lines: Sequence[Line], x: Axis, y: Axis, rule: tuple[float, str] | None = None) -> Markup:
    """Curves over one pair of axes. `rule` is a level drawn across, with its label at the axis."""
    parts = _frame(x, y)
    if rule is not None:
        at = _down(y, rule[0])
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_="rule"))
        parts.append(element("text", rule[1], x=_LEFT - 6, y=at + 3.5, class_="end"))
    for line in lines:
        places = [(_across(x, px), _down(y, py)) for px, py in line.points]
        path = "M" + "L".join(f"{px} {py}" for px, py in places) if places else ""
        parts.append(element("path", d=path, class_=f"line s{line.style % _STYLES}"))
    for line in lines:
        step = max(1, math.ceil(len(line.points) / _MOST_POINTS))
        for index in range(0, len(line.points), step):
            px, py = line.points[index]
            said = f"{line.label}: {x.label} {x.show(px)}, {y.label} {y.show(py)}"
            hit = element(
                "circle", element("title", said), cx=_across(x, px), cy=_down(y, py), r=5, class_=f"hit s{line.style % _STYLES}"
            )
            parts.append(hit)
    return _svg(name, parts, _HEIGHT)


def dot_chart(name: str, rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], x: Axis, labels: float) -> Markup:
    """Marks along a scale, one row per label. A mark is (what it is, value, class). `labels` is the room for the names."""
    high = 18
    bottom = _TOP + high * len(rows)
    parts: list[Markup] = []
    for tick in x.ticks():
        at = _along(x, tick, labels)
        parts.append(element("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="grid"))
        parts.append(element("text", x.show(tick), x=at, y=bottom + 13, class_="center"))
    parts.append(element("text", x.label, x=_round((labels + _WIDTH - _RIGHT) / 2), y=bottom + 28, class_="center"))
    for index, (label, marks) in enumerate(rows):
        middle = _TOP + high * (index + 0.5)
        name = shorten(label, int((labels - 8) / 6))
        parts.append(element("text", name, element("title", label), x=labels - 8, y=middle + 3.5, class_="end"))
        places = [_along(x, value, labels) for _, value, _ in marks]
        if places:
            parts.append(element("line", x1=min(places), x2=max(places), y1=middle, y2=middle, class_="span"))
        for (said, value, kind), at in zip(marks, places, strict=True):
            title = element("title", f"{label}, {said}: {x.show(value)}")
            parts.append(element("circle", title, cx=at, cy=middle, r=4.5, class_=f"dot {kind}"))
    return _svg(name, parts, bottom + 34)


def _along(x: Axis, value: float, labels: float) -> float:
    return _round(labels + (_WIDTH - _RIGHT - labels) * x.place(value))


def legend(lines: Sequence[tuple[str, str]]) -> Markup:
    """Label by class of a swatch."""
    return element("ul", *(element("li", element("i", class_=kind), label) for label, kind in lines), class_="legend")


def key_of(lines: Sequence[Line]) -> Markup:
    """The legend of a line chart."""
    return legend([(line.label, f"s{line.style % _STYLES}") for line in lines])


def _svg(name: str, parts: Sequence[Markup], height: float) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH} {height:g}", role="img", aria_label=name, class_="chart")


def _frame(x: Axis, y: Axis) -> list[Markup]:
    parts: list[Markup] = []
    for tick in y.ticks():
        at = _down(y, tick)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(element("text", y.show(tick), x=_LEFT - 6, y=at + 3.5, class_="end"))
    below = _HEIGHT - _BOTTOM + 14
    parts += [element("text", x.show(tick), x=_across(x, tick), y=below, class_="center") for tick in x.ticks()]
    parts.append(element("text", x.label, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, class_="center"))
    return parts


def _across(x: Axis, value: float) -> float:
    return _round(_LEFT + (_WIDTH - _RIGHT - _LEFT) * x.place(value))


def _down(y: Axis, value: float) -> float:
    return _round(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * y.place(value))


def _round(value: float) -> float:
    return round(value, 1)

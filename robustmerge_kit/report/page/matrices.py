"""Adapters against adapters as coloured tables that need no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..analysis.records import Analysis, Pair
from .markup import NONE, Markup, element, number, scrolling, shorten

Values = Mapping[tuple[int, int], float | None]
"""By row and column."""

FAINT = 0.1
"""The least value that gets the full colour: what is all close to nothing must not look like a conflict."""


def matrices(report: Analysis) -> Markup:
    """Cosine, sign conflict, shared energy, overlap of outputs and inputs."""
    if len(report.adapters) < 2:
        return Markup()
    names = [facts.label for facts in report.adapters]
    held = report.totals.pairs

    def table(first: Callable[[Pair], float | None], second: Callable[[Pair], float | None] | None = None) -> Values:
        """One figure above the diagonal, the other below it."""
        below = second or first
        values = {(pair.first, pair.second): first(pair) for pair in held}
        return values | {(pair.second, pair.first): below(pair) for pair in held}

    shared = table(lambda pair: pair.shared_first, lambda pair: pair.shared_second)
    overlap = table(lambda pair: pair.left and pair.left.overlap, lambda pair: pair.right and pair.right.overlap)
    conflict = table(lambda pair: pair.sign_conflict)
    drawn = [
        _matrix(
            "Cosine of the updates", "orange where they oppose each other", names, table(lambda pair: pair.cosine), _signed
        ),
        _matrix("Sign conflict", "share of entries of opposite sign; 0.5 is chance", names, conflict, _around_chance),
        _matrix("Shared energy", "share of the row's energy in the column's directions", names, shared, _share),
        _matrix("Overlap of subspaces", "above the diagonal outputs, below it inputs", names, overlap, _share),
    ]
    return element("div", *drawn, class_="matrices")


Ramp = Callable[[float], tuple[str, float]]
"""A value's ramp and how far along it lies, in units of the value itself."""


def _signed(value: float) -> tuple[str, float]:
    return ("warm" if value < 0 else "cold"), abs(value)


def _around_chance(value: float) -> tuple[str, float]:
    return ("warm" if value > 0.5 else "cold"), abs(value - 0.5)


def _share(value: float) -> tuple[str, float]:
    return "warm", value


def _matrix(title: str, below: str, names: Sequence[str], values: Values, ramp: Ramp) -> Markup:
    known = [value for value in values.values() if value is not None]
    most = max([FAINT, *(ramp(value)[1] for value in known)])
    decimals = 2 if max(map(abs, known), default=0.0) >= 0.095 else 3
    rows: list[Markup] = []
    for i, name in enumerate(names):
        cells = [element("th", f"{i + 1} ", element("span", shorten(name, 17)), scope="row", title=name)]
        for j, other in enumerate(names):
            value = values.get((i, j))
            if value is None:
                cells.append(element("td", "" if i == j else NONE, class_="none"))
                continue
            colour, far = ramp(value)
            shade, style = _shade(colour, far / most), f"--v:{far / most:.3f}"
            title_of_cell = f"{name} × {other}: {number(value, 4)}"
            cells.append(element("td", number(value, decimals), class_=shade, style=style, title=title_of_cell))
        rows.append(element("tr", *cells))
    head = element("tr", element("td"), *(element("th", str(i + 1), scope="col", title=name) for i, name in enumerate(names)))
    inner = element("table", element("thead", head), element("tbody", *rows), class_="matrix")
    return element("figure", element("figcaption", title, element("small", below)), scrolling(inner, title))


def _shade(ramp: str, depth: float) -> str:
    """Ramp, and how deep the colour is: the style sheet picks the ink that can be read on it."""
    return ramp + (" deep" if depth > 0.72 else " mid" if depth > 0.57 else "")

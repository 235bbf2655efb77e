"""Adapters against adapters as coloured tables that need no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..analysis.records import Analysis, Pair
from .markup import NONE, Markup, element, number, scrolling

Values = Mapping[tuple[int, int], float | None]
"""By row and column."""


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
    drawn = [
        _matrix("Cosine of the updates", "orange where they oppose each other", names, table(lambda pair: pair.cosine), "cold"),
        _matrix(
            "Sign conflict", "share of entries of opposite sign; 0.5 is chance", names, table(lambda pair: pair.sign_conflict)
        ),
        _matrix("Shared energy", "share of the row's energy in the column's directions", names, shared),
        _matrix("Overlap of subspaces", "above the diagonal outputs, below it inputs", names, overlap),
    ]
    return element("div", *drawn, class_="matrices")


def _matrix(title: str, below: str, names: Sequence[str], values: Values, positive: str = "warm") -> Markup:
    """One table; `positive` is the ramp of values that are not negative."""
    most = max((abs(value) for value in values.values() if value is not None), default=0.0) or 1.0
    decimals = 2 if most >= 0.095 else 3
    rows: list[Markup] = []
    for i, name in enumerate(names):
        cells = [element("th", f"{i + 1} ", element("span", name), scope="row", title=name)]
        for j, other in enumerate(names):
            value = values.get((i, j))
            if value is None:
                cells.append(element("td", "" if i == j else NONE, class_="none"))
                continue
            ramp = "warm" if value < 0 else positive
            said = f"{name} × {other}: {number(value, 4)}"
            cells.append(
                element(
                    "td",
                    number(value, decimals),
                    class_=_shade(ramp, abs(value) / most),
                    style=f"--v:{abs(value) / most:.3f}",
                    title=said,
                )
            )
        rows.append(element("tr", *cells))
    head = element("tr", element("td"), *(element("th", str(i + 1), scope="col", title=name) for i, name in enumerate(names)))
    inner = element("table", element("thead", head), element("tbody", *rows), class_="matrix")
    return element("figure", element("figcaption", title, element("small", below)), scrolling(inner, title))


def _shade(ramp: str, depth: float) -> str:
    """Ramp, and how deep the colour is: the style sheet picks the ink that can be read on it."""
    return ramp + (" deep" if depth > 0.72 else " mid" if depth > 0.57 else "")

"""Figures as text in aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100
NONE = "-"
"""What stands where a figure is not defined."""

_GAP = "  "


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (), shrink: int | None = None, width: int = WIDTH
) -> list[str]:
    """Aligned columns; column `shrink` gives way so that a line is no wider than `width`. A short row ends in free text."""
    full = [row for row in rows if len(row) == len(head)]
    sizes = [max(len(row[column]) for row in (head, *full)) for column in range(len(head))]
    if shrink is not None:
        room = max(8, width - sum(sizes) + sizes[shrink] - len(_GAP) * (len(head) - 1))
        names = _fit([row[shrink] for row in rows], room)
        sizes[shrink] = max(map(len, (head[shrink], *names)))
        rows = [[*row[:shrink], name, *row[shrink + 1 :]] for row, name in zip(rows, names, strict=True)]
    lines: list[str] = []
    for row in (head, *rows):
        cells: list[str] = []
        for column, cell in enumerate(row):
            last_of_short = column == len(row) - 1 and len(row) < len(head)
            cells.append(
                cell if last_of_short else f"{cell:<{sizes[column]}}" if column in left else f"{cell:>{sizes[column]}}"
            )
        lines.append(_GAP.join(cells).rstrip())
    return lines


def _fit(names: Sequence[str], size: int) -> list[str]:
    """Names of at most `size` letters: where one is too long, without the dotted parts that all of them begin with."""
    if max(map(len, names), default=0) <= size:
        return list(names)
    first, last = min(names), max(names)
    same = next((i for i, (x, y) in enumerate(zip(first, last, strict=False)) if x != y), 0)
    start = first.rfind(".", 0, same) + 1
    return [shorten(f"…{name[start:]}" if start else name, size) for name in names]


def shorten(text: str, size: int) -> str:
    """The text with its middle left out where it is too long: both ends tell names apart."""
    if len(text) <= size:
        return text
    tail = (size - 1) // 2
    return f"{text[: size - 1 - tail]}…{text[-tail:]}"


def number(value: float | None) -> str:
    """Three digits, a whole number below 100000 in full, `-` for None."""
    if value is None:
        return NONE
    return str(int(value)) if abs(value) < 1e5 and value == int(value) else f"{value:.3g}"


def amount(count: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"

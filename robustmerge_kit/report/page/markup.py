"""HTML and SVG as text: what is not markup is escaped, so a name can never become an element."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from html import escape

_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = ("meta", "link")

NONE = "–"
"""Stands where a figure has no meaning."""


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """One element. Children that are no Markup are escaped; attributes that are None are left out.

    Attribute names are Python's: `class_` is class, `data_value` data-value, `viewBox` stays.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{plain(str(value))}"' for key, value in attributes.items() if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Parts one after the other; those that are no Markup are escaped."""
    return Markup(between.join(part if isinstance(part, Markup) else plain(part) for part in parts))


def plain(text: str) -> Markup:
    """Text as HTML shows it literally, in elements and in quoted attributes; characters that HTML cannot hold are replaced."""
    return Markup(escape(_NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)))


def shorten(text: str, most: int) -> str:
    """At most so many letters, the middle left out: names that begin alike differ at the end."""
    side = (most - 1) // 2
    return text if len(text) <= most else f"{text[:side]}…{text[-side:]}"


# --- numbers ----------------------------------------------------------------------------------------------------------


def column(values: Sequence[float | None]) -> list[str]:
    """Numbers that align when set flush right: whole ones, or three digits of the largest and two decimals at least."""
    known = [abs(value) for value in values if value is not None]
    if all(value == int(value) for value in known):
        return [number(value, 0) for value in values]
    decimals = 2 - math.floor(math.log10(max(known)))
    return [number(value, min(6, max(2, decimals))) for value in values]


def number(value: float | None, decimals: int = 3) -> str:
    """One number with a true minus sign; a zero has none."""
    if value is None:
        return NONE
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if not re.search("[1-9]", text) else text.replace("-", "−")


def percent(value: float | None, decimals: int = 1) -> str:
    """A share in per cent."""
    return NONE if value is None else f"{number(100 * value, decimals)} %"


def whole_percent(value: float) -> str:
    """A share at the tick of an axis."""
    return f"{brief(100 * value)} %"


def brief(value: float) -> str:
    """A number as it stands in a sentence: three digits, no more zeros than needed."""
    return f"{value:.3g}".replace("-", "−") if abs(value) < 1e5 else f"{value:,.0f}".replace("-", "−")


# --- tables -----------------------------------------------------------------------------------------------------------


def cell(text: str, value: float | None = None, **attributes: str | float | None) -> Markup:
    """A cell that holds a number; `value` is what sorting goes by."""
    return element("td", text, class_="n", data_value=None if value is None else f"{value:.9g}", **attributes)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, text: Collection[int] = (0,)) -> Markup:
    """A table that the page's script makes sortable; `text` are the columns without numbers, the first heads its row."""
    heads = [element("th", name, scope="col", class_=None if i in text else "n") for i, name in enumerate(head)]
    body = [element("tr", element("th", row[0], scope="row"), *map(_as_cell, row[1:])) for row in rows]
    inner = (element("caption", caption), element("thead", element("tr", *heads)), element("tbody", *body))
    return scrolling(element("table", *inner, class_="sortable"), caption)


def scrolling(content: Markup, name: str) -> Markup:
    """What may be wider than the screen; the keyboard can scroll it too."""
    return element("div", content, class_="wide", tabindex="0", role="region", aria_label=name)


def _as_cell(content: str) -> Markup:
    return content if isinstance(content, Markup) and content.startswith("<td") else element("td", content)

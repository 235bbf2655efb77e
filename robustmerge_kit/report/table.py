"""An inspection as text of at most 100 columns: figures in tables, one row per adapter; names and remarks below them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .columns import NONE, WIDTH, amount, number, table
from .reports import AdapterReport, ExtraReport, Inspection, SiteReport, Spread

_GLUE = "\N{NO-BREAK SPACE}"


def as_text(inspection: Inspection, *, sites: bool = False) -> list[str]:
    """The lines; with `sites`, one row per site of every adapter too."""
    numbered = list(enumerate(inspection.adapters, 1))
    lines = _layout_table(numbered)
    if any(report.totals for _, report in numbered):
        lines += ["", *_figures_table(numbered)]
    for index, report in numbered:
        lines += ["", *_block(index, report)]
        if sites and report.sites:
            lines += ["", *_sites_table(report)]
    if inspection.together:
        lines += ["", "together", *(line for remark in inspection.together for line in _entry("", remark))]
    return lines


def _layout_table(numbered: Sequence[tuple[int, AdapterReport]]) -> list[str]:
    head = ("", "adapter", "format", "rank", "alpha", "scale", "sites", "parameters", "dtype")
    rows: list[tuple[str, ...]] = []
    for index, report in numbered:
        if report.error:
            rows.append((str(index), report.label, "cannot be read, see below"))
            continue
        alphas = _range(report.alphas) if report.alphas is not None else NONE
        rows.append(
            (
                str(index),
                report.label,
                report.layout,
                _range(report.ranks),
                alphas,
                _range(report.scales),
                str(len(report.sites)),
                f"{report.parameters:,}",
                ", ".join(report.dtypes),
            )
        )
    return table(head, rows, left=(1, 2, 8), shrink=1)


_COUNTS = ("zero A", "zero B", "dead", "NaN", "Inf")


def _figures_table(numbered: Sequence[tuple[int, AdapterReport]]) -> list[str]:
    head = ("", "norm", "eff. rank", "largest", "median", "smallest", "ratio", "|B|/|A|", *_COUNTS)
    rows: list[tuple[str, ...]] = []
    for index, report in numbered:
        totals = report.totals
        if totals is None:
            rows.append((str(index), *[NONE] * (len(head) - 1)))
            continue
        singular = totals.singular
        rows.append(
            (
                str(index),
                number(totals.norm),
                _median(totals.effective_rank),
                *(map(number, (singular.most, singular.median, singular.least)) if singular else [NONE] * 3),
                number(totals.condition),
                _median(totals.gauge),
                str(totals.zero_rows_a),
                str(totals.zero_columns_b),
                str(totals.dead),
                str(sum(found.nan for found in report.not_finite.values())),
                str(sum(found.inf for found in report.not_finite.values())),
            )
        )
    return table(head, rows)


def _sites_table(report: AdapterReport) -> list[str]:
    head = ["site", "out x in", "rank", "scale"]
    figures = report.totals is not None
    if figures:
        head += ["norm", "eff.", "largest", "median", "smallest", "|B|/|A|", "zero"]
    rows = [_site_row(site, figures) for site in report.sites]
    return ["   " + line for line in table(head, rows, left=(0,), shrink=0, width=WIDTH - 3)]


def _site_row(site: SiteReport, figures: bool) -> tuple[str, ...]:
    experts = f"{site.experts} x " if site.kind == "experts" else ""
    row = (site.name, f"{experts}{site.d_out} x {site.d_in}", str(site.rank), number(site.scale))
    if not figures:
        return row
    numbers = site.numbers
    if numbers is None:
        return (*row, "not finite")
    singular = Spread.of(numbers.singular_values)
    return (
        *row,
        number(numbers.norm),
        number(numbers.effective_rank),
        *(map(number, (singular.most, singular.median, singular.least)) if singular else [NONE] * 3),
        number(numbers.gauge),
        f"{numbers.zero_rows_a}+{numbers.zero_columns_b}",
    )


def _block(index: int, report: AdapterReport) -> list[str]:
    lines = _entry(str(index), report.reference)
    if report.error:
        lines += _entry("error", f"{report.error.where}: {report.error.what}".removeprefix(": "))
        return lines + (_entry("hint", report.error.hint) if report.error.hint else [])
    if report.source and report.source.revision:
        lines += _entry("revision", report.source.revision)
    lines += _entry("base", report.base or "not named")
    lines += _entry("targets", ", ".join(f"{kind} ({count})" for kind, count in report.targets.items()))
    if report.extras:
        lines += _entry("extras", ", ".join(map(_extra, report.extras[:_MANY])) + _more(len(report.extras)))
    for warning in report.warnings:
        lines += _entry("warning", warning)
    return lines


_MANY = 12


def _more(count: int) -> str:
    return f" and {count - _MANY} more" if count > _MANY else ""


def _extra(extra: ExtraReport) -> str:
    shape = " x ".join(map(str, extra.spec.shape)) or "scalar"
    return f"{extra.name} ({extra.kind}, {shape}, {amount(extra.spec.nbytes)})".replace(" ", _GLUE)


def _entry(label: str, text: str) -> list[str]:
    """A labelled text, wrapped beside its label; a number as label is the adapter's own line."""
    head = f"{label}  " if label.isdecimal() else f"   {label:<10}" if label else "   "
    # paths stay whole, so that they can be copied
    lines = textwrap.wrap(text, WIDTH - len(head), break_on_hyphens=False, break_long_words=False) or [""]
    return [(head if i == 0 else " " * len(head)) + line.replace(_GLUE, " ") for i, line in enumerate(lines)]


def _range(values: Sequence[float]) -> str:
    shown = [number(value) for value in values]
    return ", ".join(shown) if len(shown) <= 2 else f"{shown[0]} to {shown[-1]}"


def _median(spread: Spread | None) -> str:
    return number(spread.median if spread else None)

"""A report as files: figures, page, pictures."""

from __future__ import annotations

from pathlib import Path

from ...errors import OutputError
from .records import Analysis


def write_report(analysis: Analysis, folder: Path) -> list[Path]:
    """Write `report.json`, `report.html` and, where matplotlib is installed, the pictures into a folder that exists.

    Raises: OutputError when the system refuses.
    """
    # Both render these records, so they cannot be imported before them.
    from ..page import render_page
    from ..pictures import can_draw, write_pictures

    written = [_write(folder / "report.json", analysis.model_dump_json(indent=1) + "\n")]
    written.append(_write(folder / "report.html", render_page(analysis)))
    return [*written, *write_pictures(analysis, folder)] if can_draw() else written


def _write(path: Path, text: str) -> Path:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError.from_os(error, path) from error
    return path

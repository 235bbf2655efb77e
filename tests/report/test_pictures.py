"""The PNG pictures: one per kind of figure, whatever the names are; a clear word where matplotlib is missing."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from analysis_samples import made_up
from test_page import HOSTILE, renamed

from robustmerge_kit.errors import OutputError, UsageError
from robustmerge_kit.report import pictures
from robustmerge_kit.report.analysis.records import Analysis

NAMES = ("pairs.png", "layers.png", "directions.png", "energy.png", "angles.png", "spectra.png", "factors.png")


def drawn(report: Analysis, place: Path) -> list[str]:
    pytest.importorskip("matplotlib")
    written = pictures.write_pictures(report, place)
    assert sorted(place.iterdir()) == sorted(written)
    for path in written:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
        assert 300 <= width <= 3000
        assert 100 <= height <= 6000
    return [path.name for path in written]


def test_every_figure_has_its_picture_and_the_callers_settings_stay_as_they_are(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    assert drawn(made_up(), tmp_path) == list(NAMES)
    assert dict(matplotlib.rcParams) == before


def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    """Dollar signs would start a formula, and the last name has letters that no font holds."""
    names = (r"$\frac{1}$ $\bad{", HOSTILE[0], HOSTILE[6], "x" * 400, "\U00010fff\U0001f600")
    report = renamed(made_up(adapters=len(names), layers=1, rank=2, methods=("linear",)), names)
    assert drawn(report, tmp_path) == list(NAMES)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"adapters": 1}, {"pairs.png", "angles.png"}), ({"layers": 130, "modules": ("q",), "rank": 1, "adapters": 2}, set())],
    ids=["one adapter", "many layers"],
)
def test_what_has_no_figures_has_no_picture(changes: dict[str, Any], missing: set[str], tmp_path: Path) -> None:
    assert set(drawn(made_up(methods=("linear",), **changes), tmp_path)) == set(NAMES) - missing


def test_updates_that_are_zero_have_no_spectra(tmp_path: Path) -> None:
    report = made_up(adapters=2, layers=1, methods=("linear",))
    merges = tuple(merge.model_copy(update={"tasks": (None, None), "energy": ()}) for merge in report.totals.merges)
    totals = report.totals.model_copy(update={"updates": (None, None), "pairs": (), "merges": merges})
    found = drawn(report.model_copy(update={"totals": totals}), tmp_path)
    assert set(found) == {"pairs.png", "layers.png"}


def test_without_matplotlib_there_is_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    with pytest.raises(UsageError, match="need matplotlib") as caught:
        pictures.write_pictures(made_up(), tmp_path)
    assert caught.value.hint == 'pip install "robustmerge-kit[plots]"'
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(OutputError):
        pictures.write_pictures(made_up(layers=1, rank=2), tmp_path / "absent")


def test_matplotlib_is_imported_where_it_draws_and_not_before() -> None:
    code = "import sys, robustmerge_kit.report.pictures as p; p.can_draw(); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

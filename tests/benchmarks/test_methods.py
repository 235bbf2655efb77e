"""The methods benchmark names every built-in method, judges bars by what it measured, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustmerge_kit.methods import BUILTIN

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_it_runs_on_a_small_case_and_lists_every_method(tmp_path: Path) -> None:
    for package in ("peft", "mergekit"):
        pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    results = tmp_path / "RESULTS.md"
    options = ["--small", "--patience", "0", "--scratch", str(tmp_path), "--results", str(results)]
    done = subprocess.run([sys.executable, "methods.py", *options], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = results.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    spaces = {(row[0].partition(" (")[0], row[1]) for row in rows if len(row) == 7}
    in_full = {row[0] for row in rows if len(row) == 3}
    for method in BUILTIN:
        assert (method.name, "core" if method.kind == "elementwise" else "") in spaces
        assert (method.name in in_full) == (method.kind == "elementwise")
    assert {("ties", space) for space in ("core", "knots", "ctm", "factor")} <= spaces
    assert sum(len(row) == 9 for row in rows) == 5, "head, rule and three dense ways"
    assert str(tmp_path) not in text
    assert [path.name for path in tmp_path.iterdir()] == ["RESULTS.md"]


@pytest.mark.parametrize(
    ("seconds", "finished", "milliseconds", "expected"),
    [
        (10.0, True, 1.0, ["10.00", "1.0", "10000x", "800x", "met"]),
        (0.5, True, 1.0, ["0.50", "1.0", "500x", "800x", "missed"]),
        (10.0, False, 1.0, ["> 10.00", "1.0", "> 10000x", "800x", "met"]),
        (0.5, False, 1.0, ["> 0.50", "1.0", "> 500x", "800x", "undecided"]),
    ],
)
def test_a_bar_is_judged_by_the_ratio(seconds: float, finished: bool, milliseconds: float, expected: list[str]) -> None:
    from methods import Other, compared

    other = Other(seconds, torch.zeros(1) if finished else None)
    assert compared(["what"], other, milliseconds, 800.0, "")[1:6] == expected


def test_results_that_disagree_end_the_benchmark() -> None:
    from methods import Other, distance

    one = torch.ones(3)
    assert distance("x", one, Other(1.0, one * 1.001)) == "1e-03"
    assert distance("x", one, Other(1.0, None)) == ""
    with pytest.raises(SystemExit, match="disagree"):
        distance("x", one, Other(1.0, one * 2))


@pytest.mark.slow
def test_memory_of_every_method_is_listed(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    options = ["--small", "--scratch", str(tmp_path), "--results", str(results)]
    command = [sys.executable, "method_memory.py", *options]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in results.read_text().splitlines() if line.startswith("| ")
    ]
    assert {method.name for method in BUILTIN} == {row[0] for row in rows[2:]}
    for row in rows[2:]:
        small, large = float(row[2]), float(row[3])
        assert small > 50, "torch alone takes more"
        assert row[6] == ("met" if large <= 1.1 * small else "missed") or abs(large / small - 1.1) < 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["RESULTS.md"]

"""`rmkit analyze` on LLaVA-1.5-7B-shaped adapters: `python benchmarks/analyze.py`.

8 adapters of 224 sites, the method of the recipe alone and beside others; the bar is 60 s and 0.6 GB of anonymous memory on two
cores. Needs 1 GB of scratch space; takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cases import Case, write_case
from measure import Cost, measure
from results import RESULTS, table, write_section

HERE = Path(__file__).resolve().parent
SECONDS, GIGABYTES = 60.0, 0.6
COMPARED = {
    "robustmerge": "",
    "and linear, tsv_m": "linear,tsv_m",
    "and ties in core": "ties:density=0.2:space=core",
}
"""What is asked for beside the recipe's own method."""


def write_recipe(path: Path, folders: Sequence[Path]) -> Path:
    """A RobustMerge recipe at its defaults."""
    lines = ["merge_method: robustmerge", "adapters:", *(f"  - {json.dumps(str(folder))}" for folder in folders)]
    path.write_text("\n".join(lines) + "\n")
    return path


def analyze(recipe: Path, out: Path, compared: str) -> Cost:
    """Measure one analysis with its report; it must succeed."""
    command = [sys.executable, "-m", "robustmerge_kit", "analyze", "--quiet", str(recipe), "--out", str(out)]
    cost = measure([*command, *(["--compare", compared] if compared else [])], os.environ | {"PYTHONPATH": str(HERE.parent)})
    if cost.code:
        raise SystemExit(f"exit code {cost.code}\n{cost.output}")
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where inputs and reports are written"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="tiny adapters: does the benchmark itself work?")
    given = parser.parse_args()
    case, compared_with = Case(weights="safetensors"), COMPARED
    if given.small:
        case = Case(adapters=3, layers=1, hidden=64, inner=96, weights="safetensors")
        compared_with = {"robustmerge": "", "and linear": "linear"}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        place = Path(scratch)
        recipe = write_recipe(place / "recipe.yaml", write_case(place, case))
        load = os.getloadavg()[0]
        for name, compared in compared_with.items():
            out = place / name
            runs = [analyze(recipe, out / str(number), compared) for number in range(given.rounds)]
            seconds, cpu, anonymous = (
                statistics.median(values)
                for values in zip(*((run.seconds, run.cpu, run.anonymous / 1e9) for run in runs), strict=True)
            )
            size = sum(path.stat().st_size for path in (out / "0").iterdir()) / 1e6
            kept = seconds < SECONDS and anonymous < GIGABYTES
            bar = "" if given.small or compared else "met" if kept else "missed"
            rows.append([name, f"{seconds:.1f}", f"{cpu:.1f}", f"{anonymous:.2f}", f"{size:.1f}", bar])
    note = (
        f"{case.adapters} adapters, {len(case.sites())} sites, rank {case.rank}, bfloat16; median of {given.rounds} rounds, "
        f"start and imports included, report written; the machine's load when this began: {load:.2f}. The bar for the first "
        f"row is {SECONDS:.0f} s and {GIGABYTES:g} GB of anonymous memory."
    )
    head = ["methods", "process, s", "CPU, s", "anonymous, GB", "report, MB", "in this run"]
    command = "python benchmarks/analyze.py" + (" --small" if given.small else "")
    write_section("analyze", "Analysis of a recipe", command, f"{note}\n\n{table(head, rows)}", given.results)
    print(given.results.read_text())


if __name__ == "__main__":
    main()

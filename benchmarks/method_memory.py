"""Does memory grow with the number of modules? Every method with few and with many: `python benchmarks/method_memory.py`.

Each run is a process of its own, forked once everything is imported, and counted whole, plan and imports included. Linux only.
Takes about four minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from cases import Case, write_case
from method_rows import row
from results import RESULTS, table, write_section

from robustmerge_kit.merge import write_adapter
from robustmerge_kit.methods import BUILTIN, find
from robustmerge_kit.plan import gather, make_plan
from robustmerge_kit.recipe import Recipe
from robustmerge_kit.resources import Resources, tune_process

FLAT = 1.10
"""Most that the peak may grow by, as a ratio, while the modules become four times as many."""
TIMES = 4


def peak(recipe: dict[str, Any]) -> float:
    """Megabytes of anonymous memory that a process which merges holds at its peak."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_merge, args=(recipe, send))
    process.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:
        raise SystemExit(f"{recipe['merge_method']}: the process that merges died") from None
    process.join()
    return found / 1e6


def _merge(recipe: dict[str, Any], answer: Any) -> None:
    checked = Recipe.model_validate(recipe)
    plan = make_plan(checked, gather(checked))
    with tempfile.TemporaryDirectory() as folder:
        labels = [adapter.label for adapter in plan.adapters]
        outcome = write_adapter(plan, Path(folder), labels, Resources())
    answer.send(outcome.memory.most)


def rows(few: Sequence[Path], many: Sequence[Path], rank: int, further: int) -> list[list[str]]:
    """A row for every method and space; `further`: how many modules `many` has more."""
    chosen = [(method, "core" if method.kind == "elementwise" else None) for method in BUILTIN]
    chosen += [(find("ties"), space) for space in ("knots", "ctm", "factor", "full")]
    found: list[list[str]] = []
    for method, space in chosen:
        cut = rank if space == "full" or method.output_rank == "required" else "auto"
        small, large = (peak(row(method, folders, space, cut)) for folders in (few, many))
        verdict = "met" if large <= FLAT * small else "missed"
        each = (large - small) * 1e3 / further
        found.append([method.name, space or "", f"{small:.0f}", f"{large:.0f}", f"{each:.0f}", f"{large / small:.2f}", verdict])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="tiny adapters: does the benchmark itself work?")
    given = parser.parse_args()
    case = Case(adapters=8, layers=6, hidden=1024, inner=2816, weights="safetensors")
    if given.small:
        case = replace(case, adapters=2, layers=1, hidden=48, inner=64)
    torch.set_num_threads(1)
    tune_process()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        few = write_case(Path(scratch) / "few", case)
        deeper = replace(case, layers=TIMES * case.layers)
        many = write_case(Path(scratch) / "many", deeper)
        counts = [len(one.sites()) for one in (case, deeper)]
        found = rows(few, many, case.rank, counts[1] - counts[0])
    note = (
        f"{case.adapters} adapters, rank {case.rank}, bfloat16, modules of {case.hidden} x {case.hidden} and "
        f"{case.hidden} x {case.inner}; one worker, since how the peaks of several coincide is "
        f"chance. Anonymous memory of the whole process at its peak. "
        f"The bar is {FLAT:g} times as much for {TIMES} times as many modules. Load when this began: {os.getloadavg()[0]:.2f}."
    )
    head = [
        "method",
        "space",
        f"{counts[0]} modules, MB",
        f"{counts[1]} modules, MB",
        "each further module, kB",
        "ratio",
        f"at most {FLAT:g}",
    ]
    command = "python benchmarks/method_memory.py" + (" --small" if given.small else "")
    write_section("method_memory", "Merge methods: memory", command, f"{note}\n\n{table(head, found)}", given.results)
    print(given.results.read_text())


if __name__ == "__main__":
    main()

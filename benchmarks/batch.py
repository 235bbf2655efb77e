"""Eight small merges as one batch, against eight runs of `rmkit run`: `python benchmarks/batch.py`.

The runs of `rmkit run` come one after the other, and once as many at a time as there are cores; the three sides take turns on
the same files. The results are compared byte for byte before any figure is believed. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cases import Case, write_case
from measure import Cost, measure
from results import RESULTS, table, write_section

RMKIT = [sys.executable, "-m", "robustmerge_kit"]
BAR = 3.0
METHODS = ("linear", "task_arithmetic", "cat", "robustmerge", "ties", "tsv_m", "breadcrumbs", "star")
SPACE = {"ties": "core", "breadcrumbs": "core"}


def write_recipes(scratch: Path, folders: Sequence[Path]) -> list[Path]:
    """One recipe for each method, all with the same inputs."""
    recipes = scratch / "recipes"
    recipes.mkdir()
    for method in METHODS:
        content = {"merge_method": method, "adapters": [str(folder) for folder in folders]}
        if method in SPACE:
            content |= {"space": SPACE[method], "parameters": {"density": 0.2}}
        (recipes / f"{method}.yaml").write_text(json.dumps(content))
    return sorted(recipes.iterdir())


def run(command: Sequence[str]) -> Cost:
    cost = measure(command, os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)})
    if cost.code:
        raise SystemExit(f"{' '.join(command)}: exit code {cost.code}\n{cost.output}")
    return cost


class Bench:
    """The three sides in one scratch folder; each gives seconds, CPU seconds and the sum of anonymous bytes at most."""

    def __init__(self, scratch: Path, recipes: Sequence[Path]) -> None:
        self.scratch = scratch
        self.recipes = recipes
        self.cores = len(os.sched_getaffinity(0))

    def batch(self) -> tuple[float, float, int]:
        cost = run([*RMKIT, "batch", str(self.recipes[0].parent), "--quiet", *self.out("batch"), *self.state()])
        return cost.seconds, cost.cpu, cost.anonymous

    def separate(self, at_once: int) -> tuple[float, float, int]:
        side = f"separate{at_once}"
        self.out(side)

        def one(recipe: Path) -> Cost:
            return run([*RMKIT, "run", "--quiet", str(recipe), str(self.scratch / side / recipe.stem)])

        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            costs = list(pool.map(one, self.recipes))
        seconds = time.perf_counter() - start
        return seconds, sum(cost.cpu for cost in costs), at_once * max(cost.anonymous for cost in costs)

    def out(self, side: str) -> list[str]:
        shutil.rmtree(self.scratch / side, ignore_errors=True)
        return ["--out", str(self.scratch / side)]

    def state(self) -> list[str]:
        shutil.rmtree(self.scratch / "state", ignore_errors=True)
        return ["--state", str(self.scratch / "state")]

    def check(self) -> None:
        for recipe in self.recipes:
            sides = [self.scratch / side / recipe.stem for side in ("batch", "separate1")]
            weights = [(side / "adapter_model.safetensors").read_bytes() for side in sides]
            if weights[0] != weights[1]:
                raise SystemExit(f"{recipe.stem}: the batch's result differs from that of rmkit run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rmkit-batch-") as folder:
        scratch = Path(folder)
        case = Case(layers=options.layers, adapters=options.adapters, hidden=768, inner=3072, weights="safetensors")
        bench = Bench(scratch, write_recipes(scratch, write_case(scratch / "adapters", case)))
        sides: dict[str, Callable[[], tuple[float, float, int]]] = {
            "rmkit batch": bench.batch,
            "rmkit run, one after the other": lambda: bench.separate(1),
            f"rmkit run, {bench.cores} at a time": lambda: bench.separate(bench.cores),
        }
        seen: dict[str, list[tuple[float, float, int]]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, measured in sides.items():
                seen[side].append(measured())
        bench.check()
    middle = {side: [statistics.median(column) for column in zip(*runs, strict=True)] for side, runs in seen.items()}
    ours = middle["rmkit batch"]
    rows = [
        [side, f"{s:.2f}", f"{cpu:.2f}", f"{held / 1e9:.2f}", f"{s / ours[0]:.1f}x", f"{cpu / ours[1]:.1f}x"]
        for side, (s, cpu, held) in middle.items()
    ]
    met = "met" if middle["rmkit run, one after the other"][0] / ours[0] >= BAR else "missed"
    note = (
        f"{len(METHODS)} recipes ({', '.join(METHODS)}) for the same {case.adapters} adapters of {len(case.sites())} sites, "
        f"hidden size {case.hidden}, rank {case.rank}; median of {options.rounds} rounds, in turn, files cached; the machine's load when this began: "
        f"{load:.2f}. Bar: {BAR:g}x of eight separate processes, {met} in this run. `anonymous` is the most of the whole batch "
        "at one time, pages shared with forked workers counted for each, and of one run times those at a time."
    )
    head = ["", "seconds", "CPU, s", "anonymous, GB", "seconds : batch", "CPU : batch"]
    body = f"{note}\n\n{table(head, rows)}"
    print(body)
    write_section("batch", "Eight small merges at once", "python benchmarks/batch.py", body, options.results)


if __name__ == "__main__":
    main()

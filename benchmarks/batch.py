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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cases import Case, write_case
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


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock, and of processors with all descendants that were waited for."""

    seconds: float
    cpu: float


def run(command: Sequence[str]) -> Spent:
    """Run a command that must succeed. Nothing watches it: looking at several processes takes time that they lack."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said.read().decode()}")
    return Spent(seconds, used.ru_utime + used.ru_stime)


class Bench:
    """The three sides in one scratch folder."""

    def __init__(self, scratch: Path, recipes: Sequence[Path]) -> None:
        self.scratch = scratch
        self.recipes = recipes
        self.cores = len(os.sched_getaffinity(0))

    def batch(self) -> Spent:
        return run([*RMKIT, "batch", str(self.recipes[0].parent), "--quiet", *self.out("batch"), *self.state()])

    def separate(self, at_once: int) -> Spent:
        side = f"separate{at_once}"
        self.out(side)

        def one(recipe: Path) -> Spent:
            return run([*RMKIT, "run", "--quiet", str(recipe), str(self.scratch / side / recipe.stem)])

        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            spent = list(pool.map(one, self.recipes))
        return Spent(time.perf_counter() - start, sum(each.cpu for each in spent))

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
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rmkit-batch-") as folder:
        scratch = Path(folder)
        case = Case(layers=options.layers, adapters=options.adapters, hidden=768, inner=3072, weights="safetensors")
        bench = Bench(scratch, write_recipes(scratch, write_case(scratch / "adapters", case)))
        sides: dict[str, Callable[[], Spent]] = {
            "rmkit batch": bench.batch,
            "rmkit run, one after the other": lambda: bench.separate(1),
            f"rmkit run, {bench.cores} at a time": lambda: bench.separate(bench.cores),
        }
        seen: dict[str, list[Spent]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, measured in sides.items():
                seen[side].append(measured())
        bench.check()
    middle = {
        side: Spent(statistics.median(run.seconds for run in runs), statistics.median(run.cpu for run in runs))
        for side, runs in seen.items()
    }
    ours = middle["rmkit batch"]
    rows = [
        [side, f"{each.seconds:.2f}", f"{each.cpu:.2f}", f"{each.seconds / ours.seconds:.1f}x", f"{each.cpu / ours.cpu:.1f}x"]
        for side, each in middle.items()
    ]
    met = "met" if middle["rmkit run, one after the other"].seconds / ours.seconds >= BAR else "missed"
    note = (
        f"{len(METHODS)} recipes ({', '.join(METHODS)}) for the same {case.adapters} adapters of {len(case.sites())} sites, "
        f"hidden size {case.hidden}, rank {case.rank}; median of {options.rounds} rounds, in turn, files cached; the machine's "
        f"load when this began: {load:.2f}. Bar: {BAR:g}x of eight separate processes, {met} in this run."
    )
    head = ["", "seconds", "CPU, s", "seconds : batch", "CPU : batch"]
    body = f"{note}\n\n{table(head, rows)}"
    print(body)
    write_section("batch", "Eight small merges at once", "python benchmarks/batch.py", body, options.results)


if __name__ == "__main__":
    main()

"""RobustMerge on LLaVA-1.5-7B-shaped adapters, rmkit against the plain procedure: `python benchmarks/adapter_merge.py`.

Both sides get the same files and PyTorch's own number of threads, run one after the other and in turn, in processes of their
own. The results are compared before any figure is believed. Needs 3 GB of scratch space; takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from cases import Case, write_case
from measure import Cost, measure
from results import RESULTS, table, write_section
from safetensors.torch import load_file

from robustmerge_kit import native

HERE = Path(__file__).resolve().parent
PLAIN = HERE / "official_plain.py"
RMKIT = [sys.executable, "-m", "robustmerge_kit"]
AGREEMENT = 0.01
"""Largest relative distance between the two merged deltas; the plain side keeps its scales in bfloat16."""


NOT_COMPILED = "rmkit, .safetensors, without native kernels"


def write_recipe(path: Path, folders: Sequence[Path]) -> Path:
    """A RobustMerge recipe at its defaults, which are the official settings."""
    lines = ["merge_method: robustmerge", "adapters:", *(f"  - {json.dumps(str(folder))}" for folder in folders)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(command: Sequence[str], **settings: str) -> Cost:
    """Measure a command that must succeed; rmkit is the one of this checkout."""
    cost = measure(command, os.environ | {"PYTHONPATH": str(HERE.parent), **settings})
    if cost.code:
        raise SystemExit(f"{' '.join(command)}: exit code {cost.code}\n{cost.output}")
    return cost


class Run(NamedTuple):
    """Seconds of loading and merging; of these and saving; the cost of the process."""

    merge: float
    saved: float
    cost: Cost


class Bench:
    """The commands of both sides inside one scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.out = scratch / "merged"
        self.plain_out = scratch / "plain.bin"

    def case(self, name: str, case: Case) -> list[Path]:
        """Write a case and bring it into the page cache, so that the first measured run is no exception."""
        folders = write_case(self.scratch / name, case)
        for file in (file for folder in folders for file in folder.iterdir()):
            file.read_bytes()
        return folders

    def plain(self, folders: Sequence[Path]) -> Run:
        cost = run([sys.executable, str(PLAIN), str(self.plain_out), *map(str, folders)])
        phases = json.loads(cost.output.splitlines()[-1])
        merge = phases["load"] + phases["merge"]
        return Run(merge, merge + phases["save"], cost)

    def rmkit(self, folders: Sequence[Path], **settings: str) -> Run:
        """Reading, merging and writing overlap, so that merging alone has no time of its own."""
        recipe = write_recipe(self.scratch / "recipe.yaml", folders)
        shutil.rmtree(self.out, ignore_errors=True)
        cost = run([*RMKIT, "run", "--quiet", str(recipe), str(self.out)], **settings)
        seconds = json.loads((self.out / "rmkit.json").read_text())["timings"]["merge"]
        return Run(seconds, seconds, cost)

    def disagreement(self, sites: Sequence[str]) -> float:
        """Largest relative distance of the two results over some sites, as deltas."""
        ours = load_file(self.out / "adapter_model.safetensors")
        theirs = torch.load(self.plain_out, weights_only=True)
        scale = Case.alpha / Case.rank
        worst = 0.0
        for site in sites:
            a, b = (f"base_model.model.{site}.lora_{factor}.weight" for factor in "AB")
            expected = scale * theirs[b].float() @ theirs[a].float()
            found = ours[b].float() @ ours[a].float()
            worst = max(worst, float((found - expected).norm() / expected.norm()))
        return worst


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def against_plain(bench: Bench, case: Case, rounds: int) -> str:
    """Both sides in turn on the same files, medians and ratios; rmkit also on safetensors files of the same adapters."""
    folders = bench.case("bin", case)
    fast = bench.case("safetensors", replace(case, weights="safetensors"))
    sides: dict[str, Callable[[], Run]] = {
        "plain, .bin": lambda: bench.plain(folders),
        "rmkit, .bin": lambda: bench.rmkit(folders),
        "rmkit, .safetensors": lambda: bench.rmkit(fast),
        **({NOT_COMPILED: lambda: bench.rmkit(fast, RMKIT_NATIVE="0")} if native.available() else {}),
    }
    seen: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, measured in sides.items():
            seen[side].append(measured())
    distance = bench.disagreement(list(case.sites())[:7])
    if distance > AGREEMENT:
        raise SystemExit(f"the two sides disagree: relative distance {distance:.2e}, at most {AGREEMENT:g} expected")
    columns: dict[str, list[float]] = {
        side: [
            middle([run.merge for run in runs]),
            middle([run.saved for run in runs]),
            middle([run.cost.seconds for run in runs]),
            middle([run.cost.cpu for run in runs]),
            middle([run.cost.anonymous / 1e9 for run in runs]),
            middle([run.cost.mapped / 1e9 for run in runs]),
        ]
        for side, runs in seen.items()
    }
    plain = columns["plain, .bin"]
    rows = [[side, *(f"{value:.2f}" for value in values)] for side, values in columns.items()]
    rows += [
        [f"plain : {side}", *(f"{left / right:.1f}x" for left, right in zip(plain[:5], values[:5], strict=True)), ""]
        for side, values in columns.items()
        if side != "plain, .bin"
    ]
    head = ["", "merge, s", "and save, s", "process, s", "CPU, s", "anonymous, GB", "mapped, GB"]
    note = (
        f"{case.adapters} adapters, {len(case.sites())} sites, rank {case.rank}, bfloat16; "
        f"median of {rounds} rounds, in turn, files cached. "
        "`merge` is loading and merging; ours has written and synced the result by then too, since these overlap, so that the "
        "next column, with saving, is the fairer one; "
        "`process` includes start and imports, on our side also hashing every input for the receipt. "
        f"The two results are {distance:.1e} apart (relative, as deltas)."
    )
    return f"{note}\n\n{table(head, rows)}"


def growth(bench: Bench, cases: Sequence[Case], rounds: int, what: str, count: Callable[[Case], int]) -> str:
    """How rmkit's time and memory grow along one axis."""
    rows: list[list[str]] = []
    for case in cases:
        folders = bench.case("growth", case)
        runs = [bench.rmkit(folders) for _ in range(rounds)]
        rows.append(
            [
                str(count(case)),
                f"{middle([run.merge for run in runs]):.2f}",
                f"{middle([run.cost.seconds for run in runs]):.2f}",
                f"{middle([run.cost.anonymous / 1e9 for run in runs]):.3f}",
            ]
        )
        shutil.rmtree(bench.scratch / "growth")
    return table([what, "merge, s", "process, s", "anonymous, GB"], rows)


def starting(bench: Bench, case: Case, rounds: int) -> str:
    """The commands that read no weights."""
    folders = bench.case("starting", replace(case, layers=1))
    recipes = [str(write_recipe(bench.scratch / f"recipe{number}.yaml", folders)) for number in range(21)]
    commands = {
        "`rmkit --version`": ["--version"],
        "`rmkit --help`": ["--help"],
        "`rmkit validate`, 1 recipe": ["validate", recipes[0]],
        "`rmkit validate`, 21 recipes": ["validate", *recipes],
    }
    seconds = {name: middle([run([*RMKIT, *command]).seconds for _ in range(rounds)]) for name, command in commands.items()}
    one, many = list(seconds.values())[-2:]
    rows = [[name, f"{value:.3f}"] for name, value in seconds.items()]
    rows.append(["each further recipe", f"{(many - one) / (len(recipes) - 1):.3f}"])
    return table(["", "s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where inputs and results are written"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="tiny adapters: does the benchmark itself work?")
    given = parser.parse_args()
    case = Case(layers=2, hidden=256, inner=512) if given.small else Case()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        bench = Bench(Path(scratch))
        parts = [against_plain(bench, case, given.rounds)]
        shutil.rmtree(bench.scratch / "bin")
        few = max(1, given.rounds // 2)
        fast = replace(case, weights="safetensors")
        deeper = [replace(fast, layers=case.layers * factor) for factor in ((1,) if given.small else (1, 2, 4))]
        more = [replace(fast, adapters=adapters) for adapters in ((2,) if given.small else (2, 4, 8, 16))]
        parts.append("Deeper models:\n\n" + growth(bench, deeper, few, "layers", lambda case: case.layers))
        parts.append("More adapters:\n\n" + growth(bench, more, few, "adapters", lambda case: case.adapters))
        parts.append("Commands that read no weights:\n\n" + starting(bench, case, given.rounds))
    command = "python benchmarks/adapter_merge.py" + (" --small" if given.small else "")
    write_section("adapter_merge", "Adapter merge: RobustMerge, official settings", command, "\n\n".join(parts), given.results)
    print(given.results.read_text())


if __name__ == "__main__":
    main()

"""Folding eight adapters into a base of 853 million parameters, beside `cp`, PEFT and mergekit: `python benchmarks/fold.py`.

All sides get the same files, one after the other, in processes of their own; every output is compared with the exact sum and
with the best that one rounding to bfloat16 can do. Needs 10 GB of scratch space (25 GB with --peers, which takes many minutes).
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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from fold_cases import FoldCase, write_adapters, write_base
from measure import Cost, measure
from results import RESULTS, table, write_section
from safetensors import safe_open

HERE = Path(__file__).resolve().parent
PEERS = [sys.executable, str(HERE / "fold_peers.py")]
RMKIT = [sys.executable, "-m", "robustmerge_kit"]
WEIGHT = 0.5


class Bench:
    """One case on disk and the commands that fold it."""

    def __init__(self, scratch: Path, case: FoldCase) -> None:
        self.scratch = scratch
        self.case = case
        self.base = write_base(scratch / "base", case)
        self.adapters = write_adapters(scratch, case, self.base)
        self.out = scratch / "out"

    def clear(self) -> None:
        """Start every side with nothing to write back."""
        shutil.rmtree(self.out, ignore_errors=True)
        os.sync()

    def rmkit(self, method: str = "task_arithmetic", **parameters: float) -> Cost:
        recipe = {
            "merge_method": method,
            "base_model": str(self.base),
            "adapters": [str(adapter) for adapter in self.adapters],
            "parameters": {"weight": WEIGHT, **parameters},
            "output": {"kind": "model"},
        }
        path = self.scratch / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        return self._run([*RMKIT, "run", "--quiet", str(path), str(self.out)])

    def peer(self, way: str) -> Cost:
        return self._run([*PEERS, way, str(self.base), str(self.out), *map(str, self.adapters)])

    def copy(self) -> float:
        """Seconds of `cp` of the base and of bringing it to the disk."""
        self.clear()
        start = time.perf_counter()
        subprocess.run(["cp", "-r", str(self.base), str(self.out)], check=True)
        os.sync()
        return time.perf_counter() - start

    def _run(self, command: Sequence[str]) -> Cost:
        self.clear()
        cost = measure(command, os.environ | {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1"})
        if cost.code:
            raise SystemExit(f"{' '.join(command)}: exit code {cost.code}\n{cost.output}")
        return cost

    def errors(self, layers: int = 2) -> tuple[float, float]:
        """Relative error of the folded delta over some layers, and that of one rounding of the exact sum."""
        model, base = _index(self.out), _index(self.base)
        files = [safe_open(adapter / "adapter_model.safetensors", "pt") for adapter in self.adapters]
        found = best = norm = 0.0
        for site in [site for site in self.case.linears() if int(site.split(".")[2]) < layers]:
            delta = torch.zeros(self.case.linears()[site], dtype=torch.float64)
            for file in files:
                a, b = (file.get_tensor(f"base_model.model.{site}.lora_{x}.weight").double() for x in "AB")
                delta += WEIGHT * self.case.alpha / self.case.rank * b @ a
            weight = _tensor(base, f"{site}.weight").double()
            got = _tensor(model, f"{site}.weight").double() - weight
            ideal = (weight + delta).bfloat16().double() - weight
            norm += float(delta.square().sum())
            found += float((got - delta).square().sum())
            best += float((ideal - delta).square().sum())
        return (found / norm) ** 0.5, (best / norm) ** 0.5


def _index(folder: Path) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _tensor(index: Mapping[str, Path], name: str) -> torch.Tensor:
    with safe_open(index[name], "pt") as file:
        return file.get_tensor(name)


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def against_copying(bench: Bench, rounds: int) -> tuple[str, float]:
    """Our time beside what nobody can avoid: imports, copying the files, the products. Returns also our seconds."""
    copies, imports, products, ours = [], [], [], []
    for _ in range(rounds):
        copies.append(bench.copy())
        imports.append(bench.peer("imports").seconds)
        products.append(json.loads(bench.peer("products").output.splitlines()[-1])["seconds"])
        ours.append(bench.rmkit())
    error, best = bench.errors()
    wall = middle([cost.seconds for cost in ours])
    bound = middle(imports) + 1.5 * middle(copies) + 1.3 * middle(products)
    rows = [
        ["imports", f"{middle(imports):.2f}"],
        ["`cp` and sync of the base", f"{middle(copies):.2f}"],
        ["products in float32", f"{middle(products):.2f}"],
        ["imports + 1.5 copies + 1.3 products", f"{bound:.2f}"],
        ["**rmkit, whole process**", f"**{wall:.2f}**"],
        ["rmkit : that bound", f"{wall / bound:.2f}x"],
        ["rmkit, CPU", f"{middle([cost.cpu for cost in ours]):.2f}"],
    ]
    anonymous = max(cost.anonymous for cost in ours) / 1e9
    note = (
        f"{bench.case.parameters / 1e6:.0f} million parameters in bfloat16, {bench.case.adapters} adapters of rank "
        f"{bench.case.rank}, {len(bench.case.linears())} sites; task_arithmetic; medians of {rounds} rounds in turn. "
        f"Anonymous memory {anonymous:.2f} GB. Error of the folded delta {error:.5f}, one rounding of the exact sum {best:.5f}."
    )
    return f"{note}\n\n{table(['', 's'], rows)}", wall


def against_peers(bench: Bench, slow: bool) -> str:
    """The same merge by PEFT, and by mergekit from an empty cache; with `slow` also TIES by mergekit from a full one."""
    ours = bench.rmkit()
    rows = [_row("rmkit, task_arithmetic", ours, ours, bench.errors())]
    cost = bench.peer("peft")
    rows.append(_row("PEFT, cat + merge_and_unload + save", cost, ours, bench.errors()))
    cost = bench.peer("mergekit:task_arithmetic")
    rows.append(_row("mergekit, task_arithmetic, cold", cost, ours, bench.errors()))
    ties = bench.rmkit("ties", density=0.5)
    rows.append(_row("rmkit, ties", ties, ties, None))
    if slow:
        rows.append(_row("mergekit, ties, warm", bench.peer("mergekit:ties"), ties, None))
    shutil.rmtree(bench.scratch / "baked", ignore_errors=True)
    return table(["", "s", "of rmkit's", "CPU, s", "anonymous, GB", "error", "one rounding"], rows)


def _row(name: str, cost: Cost, ours: Cost, errors: tuple[float, float] | None) -> list[str]:
    shown = [f"{value:.5f}" for value in errors] if errors else ["", ""]
    return [
        name,
        f"{cost.seconds:.1f}",
        f"{cost.seconds / ours.seconds:.1f}x",
        f"{cost.cpu:.1f}",
        f"{cost.anonymous / 1e9:.2f}",
        *shown,
    ]


def growth(scratch: Path, cases: Sequence[FoldCase]) -> str:
    """Time and memory as the base grows."""
    rows: list[list[str]] = []
    for number, case in enumerate(cases):
        bench = Bench(scratch / f"growth{number}", case)
        copy, cost = bench.copy(), bench.rmkit()
        size = 2 * case.parameters / 1e9
        rows.append(
            [
                f"{case.parameters / 1e9:.2f}",
                f"{size:.1f}",
                f"{cost.seconds:.1f}",
                f"{cost.seconds / size:.2f}",
                f"{copy:.1f}",
                f"{cost.anonymous / 1e9:.2f}",
            ]
        )
        shutil.rmtree(bench.scratch)
    return table(["10^9 parameters", "GB", "rmkit, s", "s per GB", "`cp` and sync, s", "anonymous, GB"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="also PEFT and mergekit")
    parser.add_argument("--slow", action="store_true", help="also mergekit's TIES: ten minutes")
    parser.add_argument("--growth", action="store_true", help="instead: bases of 0.8, 3 and 7 billion parameters, 40 GB")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="tiny base and adapters: does the benchmark itself work?")
    given = parser.parse_args()
    case = FoldCase()
    if given.small:
        case = FoldCase(layers=2, hidden=64, inner=96, heads=4, key_heads=2, vocabulary=100, shard=60_000, adapters=2, rank=4)
    flags = "".join(f" --{name}" for name in ("peers", "slow", "growth", "small") if getattr(given, name))
    command = f"python benchmarks/fold.py{flags}"
    began = f"\n\nThe machine's load when this began: {os.getloadavg()[0]:.2f}."
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        if given.growth:
            larger = [replace(case, layers=32, hidden=2560, inner=6912), replace(case, layers=32, hidden=4096, inner=11008)]
            sizes = [case, replace(case, layers=2 * case.layers)] if given.small else [case, *larger]
            table_of_sizes = growth(Path(scratch), sizes)
            write_section("fold_growth", "Folding into larger bases", command, table_of_sizes + began, given.results)
        else:
            bench = Bench(Path(scratch) / "case", case)
            parts = [against_copying(bench, given.rounds)[0]]
            if given.peers:
                parts.append("Beside the peers, same files:\n\n" + against_peers(bench, given.slow))
            title = "Folding into a base: task_arithmetic and TIES"
            write_section("fold", title, command, "\n\n".join(parts) + began, given.results)
    print(given.results.read_text())


if __name__ == "__main__":
    main()

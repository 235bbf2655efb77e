"""Every built-in method on LLaVA-1.5-7B-shaped adapters, and the dense ways beside it: `python benchmarks/methods.py`.

Sites of few layers are merged by the executor itself, one site to a worker, one worker to a core, one thread to a worker; what
it would write is dropped. So the time of a module is the time of all of them divided by their number, reading included. The
dense ways get the same factors, PyTorch's own number of threads and a process of their own. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

import torch  # noqa: E402
from cases import Case, write_case  # noqa: E402
from dense_sides import DENSITY, SQUARE  # noqa: E402
from method_rows import row  # noqa: E402
from results import RESULTS, table, write_section  # noqa: E402
from torch import Tensor  # noqa: E402

from robustmerge_kit.draws import KeyedDraws  # noqa: E402
from robustmerge_kit.execute import execute  # noqa: E402
from robustmerge_kit.factors import FactorStack, Weights  # noqa: E402
from robustmerge_kit.method import Method  # noqa: E402
from robustmerge_kit.methods import BUILTIN, find  # noqa: E402
from robustmerge_kit.pipeline import merge_site  # noqa: E402
from robustmerge_kit.plan import Plan, SiteStep, gather, make_plan  # noqa: E402
from robustmerge_kit.recipe import Recipe  # noqa: E402
from robustmerge_kit.resources import Resources, tune_process  # noqa: E402
from robustmerge_kit.spaces import Dense  # noqa: E402

CORES = len(os.sched_getaffinity(0))
"""What every method that has the parameter gets; all others are left at their defaults."""
BARS = {"equivariant": 30.0, "core": 30.0, "knots": 200.0}
"""Milliseconds a square module of side 4096 may take, by kind of method or by space."""
CTM_START, CTM_SWEEP = 20.0, 5.0
PEFT_RATIO, MERGEKIT_RATIO = 800.0, 10.0
SWEEPS = (1, 21)
AGREEMENT = 0.01
"""Largest relative distance of a result from the dense one; nothing is believed that differs more."""


class Dropped:
    """A sink that keeps nothing, or what belongs to one site."""

    def __init__(self, site: str | None = None) -> None:
        self.site, self.kept = site, dict[str, Tensor]()

    def write(self, name: str, tensor: Tensor) -> None:
        if self.site and self.site in name:
            self.kept[name] = tensor


@dataclass(frozen=True)
class Bench:
    """The adapters on disk, and how long one row may go on repeating itself."""

    folders: Sequence[Path]
    case: Case
    patience: float

    def plan(self, method: Method, space: Any, rank: int | str, sites: Callable[[SiteStep], bool]) -> Plan:
        """A plan of the sites asked for."""
        recipe = Recipe.model_validate(row(method, self.folders, space, rank))
        plan = make_plan(recipe, gather(recipe))
        return replace(plan, steps=tuple(step for step in plan.steps if sites(step)))

    def milliseconds(self, plan: Plan) -> float:
        """Milliseconds a module, the median of as many runs as patience allows; the first is not counted if others follow."""
        resources, labels = Resources(workers=CORES), [adapter.label for adapter in plan.adapters]
        return self.repeat(lambda: execute(plan, Dropped(), labels, resources).seconds) / len(plan.steps) * 1e3

    def merge_only(self, plan: Plan) -> float:
        """Milliseconds a module for dense merged deltas, before they are compressed."""
        start = time.perf_counter()
        with ThreadPoolExecutor(CORES, initializer=lambda: torch.set_num_threads(1)) as pool:
            list(pool.map(lambda step: dense_delta(plan, step) is None, plan.steps))
        return (time.perf_counter() - start) / len(plan.steps) * 1e3

    def repeat(self, run: Callable[[], float]) -> float:
        end, seconds = time.perf_counter() + self.patience, [run()]
        while time.perf_counter() < end and len(seconds) < 8:
            seconds.append(run())
        return statistics.median(seconds[1:] or seconds)


def dense_delta(plan: Plan, step: SiteStep) -> Tensor:
    """The merged delta of a site in full space."""
    a, b = zip(*(member.factors.read() for member in step.members), strict=True)
    weights = Weights.of([member.weight for member in step.members])
    stack = FactorStack(a, b, tuple(member.coefficient for member in step.members), weights)
    draws = KeyedDraws.of(plan.recipe.seed, step.site, [adapter.label for adapter in plan.adapters])
    delta = merge_site(stack, step, draws).delta
    assert isinstance(delta, Dense)
    return delta.full()


def square(step: SiteStep) -> bool:
    return step.model.d_out == step.model.d_in


def two_squares(step: SiteStep) -> bool:
    return "layers.0." in step.site and step.site.endswith(("q_proj", "k_proj"))


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def low_rank_rows(bench: Bench, chosen: Sequence[tuple[Method, str | None]]) -> list[list[str]]:
    """Methods whose result is made from factors: square sites, the others, and what follows for all layers."""
    rows: list[list[str]] = []
    shapes = list(Case().sites().values())
    squares = sum(d_out == d_in for d_out, d_in in shapes)
    for method, space in chosen:
        rank = bench.case.rank if method.output_rank == "required" else "auto"
        plans = [bench.plan(method, space, rank, which) for which in (square, lambda step: not square(step))]
        small, large = (bench.milliseconds(plan) for plan in plans)
        bar = BARS.get(space or method.kind)
        seconds = (squares * small + (len(shapes) - squares) * large) / 1e3
        count = len(plans[0].adapters)
        name = method.name if count == bench.case.adapters else f"{method.name} ({count} adapters)"
        judged = ["", ""] if bar is None else [f"{bar:g}", verdict(small <= bar)]
        rows.append([name, space or "", f"{small:.1f}", *judged, f"{large:.1f}", f"{seconds:.1f}"])
    return rows


def low_rank(bench: Bench) -> str:
    """The table of everything but full space."""
    chosen = [(method, None) for method in BUILTIN if method.kind != "elementwise"]
    chosen += [(method, "core") for method in BUILTIN if method.kind == "elementwise"]
    chosen += [(find("ties"), space) for space in ("knots", "ctm", "factor")]
    side, inner = bench.case.hidden, bench.case.inner
    head = ["method", "space", f"{side} x {side}, ms", "bar, ms", "in this run", f"{side} x {inner}, ms", "224 sites, s"]
    note = (
        "Results made from the factors, milliseconds a module; the bars are for square modules of side 4096. "
        f"Ranks are the methods' own, {bench.case.rank} where one must be given. "
        "`224 sites` is not measured but follows from the two columns of milliseconds."
    )
    return f"{note}\n\n{table(head, low_rank_rows(bench, chosen))}"


def sweeps(bench: Bench) -> str:
    """What a sweep of `ctm` costs, from runs with a fixed number of them."""
    spaces = [{"ctm": {"max_iter": count, "tol": 1e-300}} for count in SWEEPS]
    few, many = (bench.milliseconds(bench.plan(find("ties"), space, "auto", square)) for space in spaces)
    each = (many - few) / (SWEEPS[1] - SWEEPS[0])
    rows = [
        [
            f"sweeps: {count}",
            f"{took:.1f}",
            f"{CTM_START + CTM_SWEEP * count:g}",
            verdict(took <= CTM_START + CTM_SWEEP * count),
        ]
        for count, took in zip(SWEEPS, (few, many), strict=True)
    ]
    rows.append(["each further sweep", f"{each:.2f}", f"{CTM_SWEEP:g}", verdict(each <= CTM_SWEEP)])
    head = ["`ties` in `ctm`", "ms", "bar, ms", "in this run"]
    return f"The same square modules in `space: ctm` with the number of sweeps fixed:\n\n{table(head, rows)}"


def full(bench: Bench) -> str:
    """Every element-wise method in full space, merging alone and with compression."""
    rows: list[list[str]] = []
    for method in (method for method in BUILTIN if method.kind == "elementwise"):
        plan = bench.plan(method, "full", bench.case.rank, two_squares)
        merged = bench.merge_only(plan)
        rows.append([method.name, f"{merged:.0f}", f"{bench.milliseconds(plan):.0f}"])
    side = bench.case.hidden
    note = (
        f"`space: full` on two {side} x {side} modules side by side, milliseconds a module: the dense merged delta alone, and "
        f"with its compression to rank {bench.case.rank}."
    )
    return f"{note}\n\n{table(['method', 'merge, ms', 'merge and compress, ms'], rows)}"


@dataclass(frozen=True)
class Other:
    """What a dense way took; `result` is None when it was stopped after `seconds`."""

    seconds: float
    result: Tensor | None


def other_side(side: str, case: Case, scratch: Path, cap: float) -> Other:
    """Run one of dense_sides.py; stopped once it, with its imports and inputs, has taken `cap` seconds."""
    result = scratch / f"{side}.pt"
    command = [sys.executable, str(HERE / "dense_sides.py"), side, str(case.hidden), str(case.inner), str(result)]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=cap, check=False)
    except subprocess.TimeoutExpired:
        return Other(time.perf_counter() - start, None)
    if done.returncode:
        raise SystemExit(f"{side}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return Other(float(done.stdout.splitlines()[-1]), torch.load(result, weights_only=True))


def distance(name: str, found: Tensor, other: Other) -> str:
    """The relative distance of two deltas as text; a large one ends the benchmark."""
    if other.result is None:
        return ""
    apart = float((found - other.result).norm() / other.result.norm())
    if apart > AGREEMENT:
        raise SystemExit(f"{name}: the two sides disagree: relative distance {apart:.2e}, at most {AGREEMENT:g} expected")
    return f"{apart:.0e}"


def compared(names: Sequence[str], other: Other, ours: float, bar: float | None, apart: str) -> list[str]:
    """A row: the other side, ours, how many times faster, the bar."""
    ratio, more = other.seconds / (ours / 1e3), "" if other.result is not None else "> "
    if bar is None:
        judged = ["", ""]
    elif more and ratio < bar:
        judged = [f"{bar:g}x", "undecided"]
    else:
        judged = [f"{bar:g}x", verdict(ratio >= bar)]
    return [*names, f"{more}{other.seconds:.2f}", f"{ours:.1f}", f"{more}{ratio:.0f}x", *judged, apart]


def against_dense(bench: Bench, wide: Bench, scratch: Path, cap: float) -> str:
    """SVD, PEFT and mergekit on one module each, ours on modules of the same shape."""
    plan = bench.plan(find("svd"), None, bench.case.rank, square)
    ours = bench.milliseconds(plan)
    keep = Dropped(SQUARE)
    execute(replace(plan, dtype="float32"), keep, [adapter.label for adapter in plan.adapters], Resources(workers=CORES))
    names = sorted(keep.kept)
    delta = keep.kept[names[1]] @ keep.kept[names[0]]
    side = f"{bench.case.hidden} x {bench.case.hidden}"
    rows: list[list[str]] = []
    for name, what in {"svd": "`torch.linalg.svd` of the dense sum", "peft": "PEFT `add_weighted_adapter`, svd"}.items():
        other = other_side(name, bench.case, scratch, cap)
        bar = PEFT_RATIO if name == "peft" else None
        rows.append(compared([what, "svd", side], other, ours, bar, distance(name, delta, other)))
    has_mergekit = find_spec("mergekit") is not None
    if has_mergekit:
        plan = wide.plan(find("ties"), "full", wide.case.rank, lambda step: step.site.endswith("down_proj"))
        first = dense_delta(plan, plan.steps[0])
        ours = wide.repeat(lambda: wide.merge_only(plan))
        other = other_side("ties", wide.case, scratch, cap)
        names = ["mergekit `merge_tensors`, ties", "ties, full", f"{wide.case.hidden} x {wide.case.inner}"]
        rows.append(compared(names, other, ours, MERGEKIT_RATIO, distance("ties", first, other)))
    note = (
        "Dense ways to the same result, once, one module; ours amortised over the cores, for `ties` the dense delta without "
        f"its compression. Stopped after {cap:g} s; `>` is then a lower bound. `apart` is the relative distance of the "
        "two merged deltas."
    )
    if not has_mergekit:
        note += " mergekit is not installed and was not measured."
    head = ["dense way", "against", "module", "dense, s", "ours, ms", "ratio", "bar", "in this run", "apart"]
    return f"{note}\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patience", type=float, default=0.5, help="seconds a cheap measurement may go on repeating itself")
    parser.add_argument("--cap", type=float, default=90.0, help="seconds after which a dense way is stopped")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where inputs and results are written"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="tiny adapters: does the benchmark itself work?")
    given = parser.parse_args()
    square_case = Case(layers=2, hidden=64, inner=96) if given.small else Case(layers=6)
    wide_case = Case(layers=2, hidden=48, inner=96) if given.small else Case(layers=2, hidden=2048, inner=5632)
    load = os.getloadavg()[0]
    tune_process()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        place = Path(scratch)
        bench, wide = (
            Bench(write_case(place / name, replace(case, weights="safetensors")), case, given.patience)
            for name, case in (("square", square_case), ("wide", wide_case))
        )
        parts = [low_rank(bench), sweeps(bench), full(bench), against_dense(bench, wide, place, given.cap)]
    note = (
        f"{bench.case.adapters} adapters, rank {bench.case.rank}, bfloat16, files cached; {CORES} workers of one thread; the "
        f"machine's load when this began: {load:.2f}. `density` is {DENSITY:g} where a method has it. `met` and `missed` say "
        f"whether this run kept the bar."
    )
    if given.small:
        note += " Tiny modules: the verdicts mean nothing."
    command = "python benchmarks/methods.py" + (" --small" if given.small else "")
    write_section("methods", "Merge methods: milliseconds a module", command, "\n\n".join([note, *parts]), given.results)
    print(given.results.read_text())


if __name__ == "__main__":
    main()

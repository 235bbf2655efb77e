"""From a finished output to the report on it: its files, its inputs, and its numbers computed once more."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import InputError
from ..flow import Flow
from ..memory import AnonymousPeak, anonymous
from ..plan import Change, ExtraStep, Plan, SiteStep, make_plan
from ..recorded import RECEIPT, listed_files, read_receipt
from ..resources import DEFAULT_MEMORY, available_cores
from .expect import Keys
from .files import UNCOVERED, compare_beside, compare_files, recipe_fits
from .found import RECIPE, find_inputs
from .outputs import AdapterOutput, ModelOutput, open_adapter, open_model
from .own import OwnCode
from .records import Check, Finding, Observe, Report
from .sites import Checker, Job

SAMPLES = 16
"""Sites, and as many other tensors, that are looked at when not all are."""

Item = TypeVar("Item")


def verify(
    folder: Path,
    *,
    samples: int | None = SAMPLES,
    seed: int = 0,
    place: Path | None = None,
    workers: int | None = None,
    memory: int = DEFAULT_MEMORY,
    planned: Callable[[int], None] = lambda count: None,
    observe: Observe = lambda name, count, nbytes: None,
) -> Report:
    """Compare an output of `merge` with its receipt, and its numbers with what the recorded recipe and inputs demand.

    samples: how many sites, and how many other tensors, are recomputed, chosen by `seed`; None: all. place: where relative
    paths of the recipe start; None: the working folder, then the folders above the output. memory: bytes that the numbers at
    hand may take; a single larger site is worked on alone.

    Raises: InputError when there is no receipt, or an input is missing or was changed; PlanError, RecipeError when the recorded
        recipe no longer fits its inputs.
    """
    start = time.perf_counter()
    receipt = read_receipt(folder)
    listed = listed_files(folder, receipt)
    if "conversion" in receipt or "recipe" not in receipt:
        raise InputError(
            "was converted, not merged: nothing can be computed again",
            where=str(folder),
            hint="compare it with its input by `rmkit diff`",
        )
    findings = compare_files(folder, listed)
    covered = ", ".join(name for name in UNCOVERED if (folder / name).is_file())
    notes = [f"no hash covers {covered}"]
    kind = receipt["output"].get("kind")

    def report(checks: Sequence[Check], sites: int, tensors: int, peak: int) -> Report:
        seconds = time.perf_counter() - start
        found = tuple(findings)
        return Report(folder, kind, len(listed), found, tuple(checks), sites, tensors, seconds, peak, tuple(notes))

    if not recipe_fits(folder, RECIPE, receipt):
        if not any(finding.where == RECIPE for finding in findings):
            findings.append(Finding(RECIPE, "is not the recipe that the receipt names"))
        notes.append(f"nothing was computed again: {RECIPE} is not what was run")
        return report((), 0, 0, anonymous())
    inputs = find_inputs(folder, receipt, place)
    plan = make_plan(inputs.recipe, inputs.inputs)
    notes.extend(_differing_versions(receipt))
    try:
        output = open_model(folder, plan, plan.fold) if plan.fold else open_adapter(folder, plan)
    except InputError as error:
        findings.append(Finding(error.where or str(folder), error.what))
        return report((), len(plan.steps), 0, anonymous())
    findings.extend(output.findings)
    if isinstance(output, ModelOutput):
        assert plan.fold is not None
        named = {finding.where for finding in findings}
        findings.extend(found for found in compare_beside(folder, plan.fold, output.found) if found.where not in named)
        others: list[Job] = [*plan.fold.changes, *output.copies]
    else:
        others = list[Job](plan.extras)
    jobs = [*_sample(list[Job](plan.steps), samples, seed), *_sample(others, samples, seed)]
    planned(len(jobs))
    threads = workers or available_cores()
    checker = Checker(
        plan,
        Keys(inputs.recipe.seed, inputs.identities),
        OwnCode(plan, inputs.identities),
        {site["site"]: int(site["rank"]) for site in receipt["sites"]},
        _entries(plan, memory, threads),
    )
    checks, peak = _run(jobs, checker, output, threads, memory, observe)
    return report(checks, len(plan.steps), len(others), peak)


def _run(
    jobs: Sequence[Job], checker: Checker, output: AdapterOutput | ModelOutput, threads: int, memory: int, observe: Observe
) -> tuple[list[Check], int]:
    """All checks in the order of the jobs, several at a time, and the most anonymous memory seen."""
    done: dict[int, Check] = {}
    peak = AnonymousPeak()
    order = {id(job): place for place, job in enumerate(jobs)}

    def work(job: Job, loaded: None) -> Check:
        try:
            return _check(job, checker, output)
        except InputError as error:
            # An input was compared with its hash a moment ago, so what cannot be read or is no number is the output.
            return Check(name_of(job), None, "bytes", 0, 1.0, 0.0, 0.0, 0, f"{error.where}: {error.what}")

    def store(job: Job, check: Check) -> None:
        done[order[id(job)]] = check
        peak.look()
        observe(check.name, 1, _read_bytes(job))

    flow = Flow[Job, None, Check](
        cost=lambda job: _cost(job, checker.entries),
        load=lambda job: None,
        work=work,
        store=store,
        workers=threads,
        limit=memory,
    )
    flow.run(jobs, enter_worker=lambda: torch.set_num_threads(1))
    return [done[place] for place in range(len(jobs))], max(peak.most, anonymous())


def _check(job: Job, checker: Checker, output: AdapterOutput | ModelOutput) -> Check:
    if isinstance(output, AdapterOutput):
        assert isinstance(job, SiteStep | ExtraStep)
        return checker.adapter_site(job, output) if isinstance(job, SiteStep) else checker.extra(job, output)
    if isinstance(job, SiteStep):
        assert checker.plan.fold is not None
        return checker.model_site(job, checker.plan.fold, output)
    if isinstance(job, Change):
        return checker.change(job, output)
    assert isinstance(job, str)
    return checker.copy(job, output)


def name_of(job: Job) -> str:
    """What a job is called in a report."""
    if isinstance(job, SiteStep):
        return job.site
    if isinstance(job, ExtraStep):
        return job.spec.name
    return job.tensor if isinstance(job, Change) else job


def _read_bytes(job: Job) -> int:
    return 0 if isinstance(job, str) else job.read_bytes


# --- how much ------------------------------------------------------------------------------------------------------------


def _sample(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """Some of the items, in their order."""
    if count is None or count >= len(items):
        return list(items)
    places = random.Random(seed).sample(range(len(items)), count)
    return [items[place] for place in sorted(places)]


def _entries(plan: Plan, memory: int, threads: int) -> int:
    """Numbers of a tensor that are made at a time: of every adapter some arrays in float64, for every worker."""
    arrays = 4 * len(plan.adapters) + 10
    return max(1 << 12, min(1 << 20, memory // threads // (8 * arrays)))


def _cost(job: Job, entries: int) -> int:
    """Bytes of a job in memory: factors in float64, tiles, and whole deltas where thresholds or spectra need them."""
    if isinstance(job, ExtraStep):
        return 3 * 8 * job.spec.numel
    if not isinstance(job, SiteStep):
        return 8 * 8 * (1 << 19)
    numel, width = job.model.d_in * job.model.d_out, job.model.d_in + job.model.d_out
    tiles = 8 * min(entries, numel) * (4 * len(job.members) + 10)
    whole = 8 * numel * 3 if job.dense else 0
    return job.read_bytes + 8 * width * sum(job.ranks) * 6 + tiles + whole


def _differing_versions(receipt: Any) -> list[str]:
    """A remark where another version made the output; what it may change is within rounding, or a bug."""
    from .. import __version__

    made = receipt.get("rmkit")
    return [] if made == __version__ else [f"{RECEIPT} was written by rmkit {made}, this is {__version__}"]

"""What a worker does about one task: check a job, or merge it; what happens is told in the job's log."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from ..digests import share_digests
from ..errors import InputError, OutputError, RmkitError, Several
from ..merge import assist, keep_inputs_apart, merge, output_path, refuse_sweep
from ..output import check_free, clear_leftovers
from ..plan import Plan, check_output_name, divide, gather, largest_job, make_plan
from ..recipe import Recipe, load_recipe, parse_variant
from ..resources import Resources
from .claim import Claimed, claim, claim_file, is_held
from .done import difference, input_files
from .faults import is_transient
from .tasks import Checked, Failure, Helped, Job, Merged, Result, Share, Task

Report = Callable[[int], None]
"""Called with the number of sites done."""

_EVERY = 5.0
"""Seconds between two lines of a log that say how far a merge is."""
_PATIENCE = 5.0
"""Seconds that a helper waits for a merge that has not begun, or whose worker has died."""


def carry_out(task: Task, report: Report = lambda sites: None) -> Result:
    """Check or merge a job, or help with it; whatever goes wrong becomes a Failure."""
    with _logged(task.job.log):
        _tell(f"{task.kind}, attempt {task.attempt}: {task.job.recipe}")
        try:
            share_digests(task.digests)
            if task.folder is not None:
                _enter(task.folder)
            result = {"check": _check, "merge": _merge, "help": _help}[task.kind](task, report)
        except Exception as error:
            return _failed(error)
        return result


def _enter(folder: Path) -> None:
    """Stand where the batch was started, so that relative paths mean the same here."""
    try:
        os.chdir(folder)
    except OSError as error:
        hint = "all nodes need a file system they share, under the same paths"
        raise InputError(f"the machine {os.uname().nodename} has no such folder", where=str(folder), hint=hint) from error


def _check(task: Task, report: Report) -> Checked:
    recipe = _load(task.job)
    target = output_path(recipe, task.job.out)
    plan = _plan(recipe, target)
    done = _is_done(task, plan, target)
    if not done:
        check_free(target, task.overwrite)
    for note in plan.notes:
        _tell(f"note: {note}")
    _tell(f"{len(plan.steps)} sites, {'done already' if done else 'to do'}: {target}")
    return Checked(
        target=target,
        done=done,
        sites=len(plan.steps),
        reads=plan.read_bytes,
        writes=plan.write_bytes,
        needs=largest_job(plan),
        inputs=tuple(sorted({path.parent.resolve() for path in input_files(plan)})),
        notes=plan.notes,
        parts=len(divide(plan)),
    )


def _merge(task: Task, report: Report) -> Merged:
    recipe = _load(task.job)
    target = output_path(recipe, task.job.out)
    with claim(target):
        # Another batch may have made it since the check.
        if os.path.lexists(target) and _is_done(task, _plan(recipe, target), target):
            _tell(f"done already: {target}")
            return Merged(target, skipped=True)
        counter = _Counter(report)
        receipt = merge(
            recipe,
            target,
            resources=_resources(task.share),
            overwrite=task.overwrite,
            restart=task.restart,
            card=task.card,
            planned=counter.start,
            observe=counter.step,
            sharing=_began if task.shared else None,
        )
    for note in receipt.content["notes"]:
        _tell(f"note: {note}")
    nbytes = sum(entry["size"] for entry in receipt.content["output"]["files"])
    _tell(f"done in {receipt.content['timings']['total']:.2f} s, {nbytes / 1e6:.1f} MB: {target}")
    return Merged(target, skipped=False, sites=receipt.content["totals"]["sites"], nbytes=nbytes)


def _help(task: Task, report: Report) -> Helped:
    recipe = _load(task.job)
    target = output_path(recipe, task.job.out)
    counter = _Counter(report)
    files = assist(
        recipe,
        target,
        resources=_resources(task.share),
        expected=_Expectation(target, task.overwrite),
        observe=counter.step,
        took=_began,
    )
    _tell(f"helped with {len(files)} files: {target}")
    return Helped(target, files)


class _Expectation:
    """Whether the merge of a target runs, or may begin soon; it does not once its claim was given back."""

    def __init__(self, target: Path, overwrite: bool) -> None:
        self._target = target
        self._overwrite = overwrite
        self._until = time.monotonic() + _PATIENCE
        self._seen = False

    def __call__(self) -> bool:
        held = is_held(self._target)
        if held:
            self._seen, self._until = True, time.monotonic() + _PATIENCE
        over = self._seen or (self._target.exists() and not self._overwrite)
        return time.monotonic() < self._until and not (held is None and over)


def _resources(share: Share) -> Resources:
    return Resources(share.device, share.threads, share.memory, share.gpu_memory)


def _began(files: Sequence[str]) -> None:
    _tell(f"part: {', '.join(files)}")


def _load(job: Job) -> Recipe:
    if job.variant is not None:
        return parse_variant(job.variant, job.settings)
    return load_recipe(job.recipe, job.settings)


def _plan(recipe: Recipe, target: Path) -> Plan:
    """The plan of a recipe, by headers only."""
    refuse_sweep(recipe)
    inputs = gather(recipe)
    keep_inputs_apart(target, inputs, recipe)
    plan = make_plan(recipe, inputs)
    check_output_name(plan.target, target)
    return plan


def _is_done(task: Task, plan: Plan, target: Path) -> bool:
    """Whether the output is there. One that is not what the recipe makes may only be replaced.

    Raises: OutputError when there is another output and it may not be replaced.
    """
    if not target.is_dir() or not any(target.iterdir()):
        return False
    differs = difference(plan, target)
    if differs is not None and not task.overwrite:
        raise OutputError(
            f"exists already, and is not what this recipe makes: {differs}",
            where=str(target),
            hint="choose another name, or add --overwrite",
        )
    if differs is not None or task.restart:
        return False
    if task.kind == "check" and os.path.lexists(claim_file(target)):
        with contextlib.suppress(Claimed), claim(target):  # what a killed batch left behind
            clear_leftovers(target)
    return True


def _failed(error: Exception) -> Failure:
    if not isinstance(error, RmkitError):
        _write(traceback.format_exc())
        what = f"{type(error).__name__}: {error}"
        problem = {"where": "bug", "what": what, "hint": "please report it, with this job's log"}
        return Failure((problem,), 70, transient=is_transient(error))
    parts = error.errors if isinstance(error, Several) else (error,)
    transient = is_transient(error)
    _tell(f"failed{' for now' if transient else ''}")
    for part in parts:
        _write(f"error: {part}\n")
    problems = tuple({"where": part.where, "what": part.what, "hint": part.hint} for part in parts)
    return Failure(problems, error.exit_code, transient, isinstance(error, Claimed))


class _Counter:
    """Counts sites for whoever watches, and tells the log now and then."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._told = time.monotonic()
        self._total = 0
        self.done = 0

    def start(self, plan: Plan) -> None:
        self._total = len(plan.steps)

    def step(self, name: str, sites: int, nbytes: int) -> None:
        self.done += sites
        self._report(self.done)
        if time.monotonic() - self._told > _EVERY:
            self._told = time.monotonic()
            _tell(f"{self.done} of {self._total} sites")


@contextlib.contextmanager
def _logged(path: Path | None) -> Generator[None]:
    """Everything this process prints, whoever prints it, goes into the log."""
    if path is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        for handle in kept:
            os.close(handle)
        raise OutputError.from_os(error, path) from error
    try:
        for number in (1, 2):
            os.dup2(log, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handle in zip((1, 2), kept, strict=True):
            os.dup2(handle, number)
            os.close(handle)
        os.close(log)


def _tell(what: str) -> None:
    _write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n")


def _write(text: str) -> None:
    """Into the log, whatever Python's own stderr has been replaced by."""
    os.write(2, text.encode(errors="replace"))

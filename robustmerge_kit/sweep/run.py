"""A whole sweep: draw, merge, score, keep; several trials at a time, until all are done or nothing gets better."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..batch.claim import Claimed, claim
from ..errors import OutputError, RecipeError, RmkitError, Several
from ..recipe import CommandEvaluation, PythonEvaluation, Recipe, plain_data, vary
from ..resources import Resources
from .best import BestFile, header
from .evaluate import Command, Evaluator, Stopped, Subject, Unscored
from .functions import Function
from .merging import Merges
from .study import Study, check_optuna
from .trials import Trial, best_of, is_stale

Tell = Callable[..., None]
"""Called with an event and its fields: `begin` (trials, most), `trial` (trial, best)."""

_HINT = "add sweep: {search: {parameters.density: {low: 0.1, high: 1.0}}, evaluate: diagnostics, trials: 20}"


@dataclass(frozen=True)
class Settings:
    """Where a sweep keeps its things and how it runs; none of it changes a score.

    state: folder of the study, logs and merged folders. best: file for the best recipe. jobs: trials at the same time.
    keep: leave merged folders where they are.
    """

    state: Path
    best: Path
    jobs: int = 1
    resources: Resources = field(default_factory=Resources)
    overwrite: bool = False
    restart: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Result:
    """What has become of a sweep. why: what ended it."""

    trials: tuple[Trial, ...]
    best: Trial | None
    best_recipe: Path
    state: Path
    maximize: bool
    why: str


def run_sweep(recipe: Recipe, settings: Settings, tell: Tell = lambda event, **fields: None) -> Result:
    """Run the sweep of a recipe, or go on with it where its study lies already.

    Every trial's score is on the disk before the next is drawn, and so is the best recipe so far.

    Raises: RmkitError; every mistake of the user's is reported before anything is merged. What goes wrong in single trials is
    not raised, but kept as their reason.
    """
    if recipe.sweep is None:
        raise RecipeError("there is no sweep in it", where=recipe.title, hint=_HINT)
    check_optuna()
    state = settings.state.absolute()
    with ExitStack() as stack:
        merges = Merges(recipe, settings.resources)
        stack.callback(merges.close)
        merges.check()
        _claim(stack, state)
        if settings.restart:
            _discard(state)
        for folder in (state / "logs", state / "trials"):
            _make(folder)
        evaluator = _evaluator(recipe, state)
        if evaluator is not None:
            stack.callback(evaluator.close)
        study = Study(state / "study.db", recipe, _identity(recipe, merges))
        best = BestFile(settings.best, state / "written.sha256", settings.overwrite)
        return _Run(recipe, settings, state, merges, evaluator, study, best, tell).run()


@dataclass(frozen=True)
class _Run:
    """One sweep on its way."""

    recipe: Recipe
    settings: Settings
    state: Path
    merges: Merges
    evaluator: Evaluator | None
    study: Study
    best: BestFile
    tell: Tell

    def run(self) -> Result:
        assert self.recipe.sweep is not None
        maximize, patience = self.recipe.sweep.direction == "maximize", self.recipe.sweep.patience
        known = {trial.number: trial for trial in self.study.trials() if trial.state != "running"}
        self.tell("begin", trials=len(known), most=self.study.most)
        self._keep_best(best_of(list(known.values()), maximize))
        stop = threading.Event()
        running: dict[Future[Trial], Trial] = {}
        pool = ThreadPoolExecutor(self.settings.jobs, thread_name_prefix="rmkit-trial")
        try:
            while True:
                while len(running) < self.settings.jobs and not is_stale(list(known.values()), maximize, patience):
                    drawn = self.study.draw()
                    if drawn is None:
                        break
                    running[pool.submit(self._carry_out, drawn, stop)] = drawn
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for each in sorted(done, key=lambda each: running[each].number):
                    del running[each]
                    trial = each.result()
                    before = best_of(list(known.values()), maximize)
                    known[trial.number] = trial
                    now = best_of(list(known.values()), maximize)
                    self.study.tell(trial)
                    if now is not before:
                        self._keep_best(now)
                    self.tell("trial", trial=trial, best=now)
        except BaseException as error:
            error.add_note(f"{len(known)} trials are kept: the same command goes on after them")
            raise
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        trials = tuple(self.study.trials())
        whole = len(known) >= self.study.most
        why = "all trials are done" if whole else f"{patience} trials in a row were no better"
        return Result(trials, best_of(trials, maximize), self.settings.best, self.state, maximize, why)

    def _carry_out(self, drawn: Trial, stop: threading.Event) -> Trial:
        """Merge and score one trial; what is wrong with it becomes its reason.

        Raises: Stopped; OutputError, after which no other trial could be merged either.
        """
        if stop.is_set():
            raise Stopped
        work = self.state / "trials" / f"{drawn.number:05}"
        start = time.perf_counter()
        try:
            recipe = vary(self.recipe, drawn.drawn)
            if self.evaluator is None:
                found = self.merges.diagnose(recipe)
                seconds = time.perf_counter() - start
                return replace(drawn, state="complete", score=found.score, parts=found.parts(), merge_seconds=seconds)
            folder = work / self.merges.name
            self.merges.write(recipe, folder)
            merged = time.perf_counter()
            log = self.state / "logs" / work.name
            score = self.evaluator.score(Subject(drawn.number, drawn.params, folder, work, log), stop)
        except OutputError:
            raise
        except (Unscored, RmkitError) as error:
            return self._failed(drawn, _reason(error), start)
        except Stopped:
            raise
        except Exception as error:
            return self._failed(drawn, f"bug: {type(error).__name__}: {error}", start)
        finally:
            if not self.settings.keep:
                shutil.rmtree(work, ignore_errors=True)
        ended = time.perf_counter()
        return replace(drawn, state="complete", score=score, merge_seconds=merged - start, score_seconds=ended - merged)

    def _failed(self, drawn: Trial, reason: str, start: float) -> Trial:
        return replace(drawn, state="failed", reason=reason, merge_seconds=time.perf_counter() - start)

    def _keep_best(self, best: Trial | None) -> None:
        if best is not None:
            self.best.write(vary(self.recipe, best.drawn, header(self.recipe, best)).text)


def _reason(error: Exception) -> str:
    if isinstance(error, Several):
        error = error.errors[0]
    if isinstance(error, RmkitError):
        return f"{error.where}: {error.what}".removeprefix(": ")
    return str(error)


def _evaluator(recipe: Recipe, state: Path) -> Evaluator | None:
    """What scores folders; None where the merge's diagnostics do."""
    assert recipe.sweep is not None
    match recipe.sweep.evaluate:
        case CommandEvaluation() as settings:
            return Command(settings, recipe.place)
        case PythonEvaluation() as settings:
            return Function(settings, recipe.place, state / "logs" / "function.log")
        case _:
            return None


def _identity(recipe: Recipe, merges: Merges) -> dict[str, Any]:
    """What all scores of a study have in common, by the name it has in messages."""
    assert recipe.sweep is not None
    output = recipe.output.model_dump(mode="json", exclude={"path"})
    whole = {key: value for key, value in plain_data(recipe).items() if key not in ("name", "meta")}
    sweep = recipe.sweep.model_dump(mode="json", exclude={"trials", "patience"})
    evaluate = sweep.pop("evaluate")
    if isinstance(evaluate, dict):
        evaluate.pop("timeout", None)
    digests = hashlib.sha256(repr(merges.digests()).encode()).hexdigest()
    return {"the recipe": {**whole, "output": output}, **sweep, "evaluate": evaluate, "the adapters' files": digests}


def _claim(stack: ExitStack, state: Path) -> None:
    """Hold the study, which belongs to one process at a time.

    Raises: OutputError.
    """
    try:
        stack.enter_context(claim(state))
    except Claimed as error:
        hint = "wait for it, or keep this one elsewhere with --state"
        raise OutputError("another sweep is running there", where=str(state), hint=hint) from error


def _discard(state: Path) -> None:
    """Remove what an earlier sweep left."""
    for name in ("study.db", ".study.db.part"):
        (state / name).unlink(missing_ok=True)
    for name in ("logs", "trials"):
        shutil.rmtree(state / name, ignore_errors=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.from_os(error, folder) from error

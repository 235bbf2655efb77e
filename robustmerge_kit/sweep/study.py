"""A study: the trials of a sweep in an SQLite file, which Optuna keeps whatever chooses the values; nothing else imports it.

What a trial draws depends on the seed, the number of the trial, the name of the axis and the trials that ended before, and on
nothing else. So a study that was killed at any moment goes on as if it had not been: a trial that was running keeps its number
and what it has drawn, draws the rest as it would have, and is merged and scored again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import OutputError, UsageError
from ..recipe import Axis, Recipe, Sweep, plain_data
from .trials import Trial

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

_NAME = "sweep"
_IDENTITY = "identity"
_DETAILS = "details"
_KEPT = ("reason", "parts", "merge_seconds", "score_seconds")


def check_optuna() -> None:
    """Refuse to begin without Optuna.

    Raises: UsageError.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("a sweep needs optuna, which is not installed", hint='pip install "robustmerge-kit[sweep]"')


class Study:
    """The trials of one sweep. For one thread and, by the caller's lock, one process."""

    def __init__(self, path: Path, recipe: Recipe, identity: Mapping[str, Any]) -> None:
        """Open the study in the file `path`, or begin it there. identity: what all of its scores have in common.

        Raises: OutputError for a file that is no study, or the study of something else.
        """
        import optuna

        assert recipe.sweep is not None
        assert recipe.search is not None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._sweep, self._search, self._data = recipe.sweep, recipe.search, plain_data(recipe)
        self.grid = list(self._grid()) if self._sweep.sampler == "grid" else None
        try:
            if not path.exists():
                _create(path, self._sweep.direction, identity)
            sampler = _keyed_sampler(self._sweep, self.grid)
            self._study: OptunaStudy = optuna.load_study(study_name=_NAME, storage=_storage(path), sampler=sampler)
            known = self._study.user_attrs[_IDENTITY]
        except Exception as error:
            raise OutputError(
                f"is not the study of a sweep ({type(error).__name__})", where=str(path), hint="--restart begins anew"
            ) from error
        _check_identity(known, dict(identity), path)
        self._open: dict[int, OptunaTrial] = {}

    @property
    def most(self) -> int:
        """How many trials there are to be."""
        most = self._sweep.trials
        if self.grid is None:
            assert most is not None
            return most
        return len(self.grid) if most is None else min(most, len(self.grid))

    def trials(self) -> list[Trial]:
        """All trials by number."""
        return [self._record(each) for each in self._study.get_trials(deepcopy=False)]

    def draw(self) -> Trial | None:
        """The next trial to merge and score: one that was cut short, else a new one; None when all are under way."""
        from optuna.trial import Trial as OptunaTrial
        from optuna.trial import TrialState

        known = self._study.get_trials(deepcopy=False)
        begun = [each for each in known if each.state == TrialState.RUNNING and each.number not in self._open]
        if begun:
            # Optuna has no public way to go on with a trial.
            trial = OptunaTrial(self._study, begun[0]._trial_id)  # pyright: ignore[reportPrivateUsage]
        elif len(known) < self.most:
            trial = self._study.ask()
        else:
            return None
        self._open[trial.number] = trial
        drawn: dict[str, Any] = {}
        fixed = self.grid[trial.number] if self.grid is not None else None
        for axis in (*self._search.methods, *self._search.others):
            if (axis.name in fixed) if fixed is not None else self._search.fits(self._data, drawn, axis):
                drawn[axis.name] = self._suggest(trial, axis)
        return Trial(trial.number, "running", drawn, self._params(drawn))

    def tell(self, trial: Trial) -> None:
        """Keep what has become of a trial, in one step."""
        from optuna.trial import TrialState

        begun = self._open.pop(trial.number)
        kept = {name: getattr(trial, name) for name in _KEPT}
        begun.set_user_attr(_DETAILS, {**kept, "parts": dict(trial.parts)})
        if trial.state == "complete":
            self._study.tell(begun, trial.score)
        else:
            self._study.tell(begun, state=TrialState.FAIL)

    def _suggest(self, trial: OptunaTrial, axis: Axis) -> Any:
        if self.grid is not None:
            return trial.suggest_categorical(axis.name, axis.steps() or ())
        if axis.choices:
            return trial.suggest_categorical(axis.name, axis.labels)
        if axis.whole:
            return trial.suggest_int(axis.name, int(axis.low), int(axis.high), step=int(axis.step or 1), log=axis.log)
        return trial.suggest_float(axis.name, axis.low, axis.high, step=axis.step, log=axis.log)

    def _params(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {axis.name: axis.value(drawn[axis.name]) for axis in self._search.axes if axis.name in drawn}

    def _record(self, found: FrozenTrial) -> Trial:
        from optuna.trial import TrialState

        state = {TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}.get(found.state, "running")
        score = found.value if state == "complete" else None
        details = found.user_attrs.get(_DETAILS, {})
        return Trial(found.number, state, dict(found.params), self._params(found.params), score, **details)  # pyright: ignore[reportArgumentType]

    def _grid(self) -> Iterator[dict[str, Any]]:
        """Every combination, the last axis fastest; those that differ only in what their methods do not have are one."""
        axes = self._search.axes
        seen: set[str] = set()
        for values in itertools.product(*(axis.steps() or () for axis in axes)):
            whole = {axis.name: value for axis, value in zip(axes, values, strict=True)}
            methods = {axis.name: whole[axis.name] for axis in self._search.methods}
            kept = {axis.name: whole[axis.name] for axis in axes if self._search.fits(self._data, methods, axis)}
            key = json.dumps(kept)
            if key not in seen:
                seen.add(key)
                yield kept


def _create(path: Path, direction: Literal["maximize", "minimize"], identity: Mapping[str, Any]) -> None:
    """A new study, which is there whole or not at all."""
    import optuna

    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    storage = _storage(part)
    optuna.create_study(study_name=_NAME, storage=storage, direction=direction).set_user_attr(_IDENTITY, dict(identity))
    storage.remove_session()
    part.rename(path)


def _storage(path: Path) -> Any:
    from optuna.storages import RDBStorage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RDBStorage(f"sqlite:///{os.fspath(path.absolute())}")


def _check_identity(known: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """A study goes on only with what it began with.

    Raises: OutputError that names what differs.
    """
    wanted = json.loads(json.dumps(wanted))
    differs = [key for key in dict.fromkeys((*known, *wanted)) if known.get(key) != wanted.get(key)]
    if differs:
        raise OutputError(
            f"holds the trials of another sweep: {', '.join(differs)} differ{'s' if len(differs) == 1 else ''}",
            where=str(path),
            hint="--restart discards them, --state keeps this sweep elsewhere",
        )


def _keyed_sampler(sweep: Sweep, grid: Sequence[Mapping[str, Any]] | None) -> BaseSampler:
    """A sampler whose choices depend on no state of its own. grid: the values of every trial, for a grid."""
    from optuna.samplers import BaseSampler, RandomSampler, TPESampler

    class Keyed(BaseSampler):
        """Every value from a sampler of its own, seeded by trial and axis."""

        def infer_relative_search_space(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return {}

        def sample_relative(
            self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return {}

        def sample_independent(
            self, study: OptunaStudy, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            if grid is not None:
                return grid[trial.number][param_name]
            key = hashlib.sha256(f"{sweep.seed} {trial.number} {param_name}".encode()).digest()
            seed = int.from_bytes(key[:4], "big")
            one: BaseSampler = RandomSampler(seed=seed)
            if sweep.sampler == "tpe":
                one = TPESampler(seed=seed, n_startup_trials=sweep.startup, multivariate=False)
            return one.sample_independent(study, trial, param_name, param_distribution)

    return Keyed()

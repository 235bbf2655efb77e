"""One modality's encoder, tasks, adapters and scores; every question to it is answered once and kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from robustmerge_kit.errors import RmkitError

from .claims import claimed
from .encoder import Encoder
from .ledger import INDIVIDUAL, ZERO_SHOT, Ledger
from .measure import measure
from .merging import merged
from .scores import Trial
from .settings import Setting
from .tasks import Task
from .train_order import MULTITASK, Wanted

ALONE = Setting("task_arithmetic")
"""One adapter with weight 1, put in exactly: how individual and multi-task adapters are evaluated too."""


class Bench:
    """What is evaluated, on what; the ledger keeps the results."""

    def __init__(self, encoder: Encoder, base: Path, tasks: Sequence[Task], ledger: Ledger) -> None:
        self.encoder, self.base, self.tasks, self.ledger = encoder, base, list(tasks), ledger
        self.anchors = {task.name: encoder.describe(task) for task in tasks}
        self.seen = [task for task in tasks if task.role == "seen"]

    @property
    def names(self) -> list[str]:
        """The seen tasks, in their order."""
        return [task.name for task in self.seen]

    def zero_shot(self, split: str) -> None:
        """The plain encoder."""
        self._once(self.ledger.trial(ZERO_SHOT, "", split), None, [])

    def individual(self, group: str) -> None:
        """Every adapter of a group on its own task."""
        for task in self.seen:
            if self.ledger.ready(group, [task.name]):
                trial = self.ledger.trial(INDIVIDUAL, group, "test", [task.name])
                self._once(trial, ALONE, [self.ledger.adapter(group, task.name)], [task])

    def multitask(self, seed: int) -> None:
        """The adapter trained on all seen tasks."""
        group = Wanted(MULTITASK, seed=seed).group
        if self.ledger.ready(group, [MULTITASK]):
            self._once(self.ledger.trial(MULTITASK, group, "test"), ALONE, [self.ledger.adapter(group, MULTITASK)])

    def merge(self, setting: Setting, group: str, split: str, names: Sequence[str] = ()) -> None:
        """A merge of a group's adapters, if they are trained and the method takes them."""
        inputs = names or self.names
        if self.ledger.ready(group, inputs):
            adapters = [self.ledger.adapter(group, name) for name in inputs]
            self._once(self.ledger.trial(setting.key, group, split, names), setting, adapters)

    def _once(
        self, trial: Trial, setting: Setting | None, adapters: Sequence[Path], tasks: Sequence[Task] | None = None
    ) -> None:
        if self.ledger.scores.get(trial):
            return
        lock = self.ledger.cache / "claims" / hashlib.sha256(repr(trial).encode()).hexdigest()[:20]
        with claimed(lock, wait=True):
            if not self.ledger.scores.get(trial):
                self._measure(trial, setting, adapters, tasks)

    def _measure(self, trial: Trial, setting: Setting | None, adapters: Sequence[Path], tasks: Sequence[Task] | None) -> None:
        start = time.process_time()
        asked = tasks or (self.seen if trial.split == "validation" else self.tasks)
        inside = merged(self.encoder.module, setting, adapters, self.base) if setting else nullcontext()
        try:
            with inside:
                score = measure(self.encoder, asked, self.anchors, trial)
        except RmkitError as error:
            print(f"left out: {trial.setting}, {trial.group}: {error}", flush=True)
            return
        score = replace(score, cpu_seconds=time.process_time() - start)
        self.ledger.scores.add(score)
        seen = [name for name in score.accuracy if name in self.names]
        mean = f"seen {score.mean(seen):.3f}" if seen else ""
        print(f"{trial.split} {trial.group} {trial.setting}: {mean}, {score.cpu_seconds:.0f} s of CPU", flush=True)

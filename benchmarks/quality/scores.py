"""Scores as they are found: one JSON line each, so that an interrupted run goes on and several processes may add."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """What is scored: a setting's key, or a name such as zero-shot, for a group of adapters, on rows of one split."""

    setting: str
    group: str
    split: str
    rows: int
    merged: tuple[str, ...] = ()
    """The adapters, where they are not those of all seen tasks."""


@dataclass(frozen=True)
class Score:
    """Accuracy and macro-F1 of every task of the split."""

    trial: Trial
    accuracy: Mapping[str, float]
    macro_f1: Mapping[str, float]
    cpu_seconds: float = 0.0

    def mean(self, names: Sequence[str]) -> float:
        """Mean accuracy over some tasks."""
        return sum(self.accuracy[name] for name in names) / len(names)


class Scores:
    """The scores of a cache folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Trial, Score] = {}
        self._read = 0

    def get(self, trial: Trial) -> Score | None:
        """The score of a trial, by whichever process found it."""
        self.refresh()
        return self._known.get(trial)

    def all(self) -> list[Score]:
        """Every score there is."""
        self.refresh()
        return list(self._known.values())

    def add(self, score: Score) -> None:
        """Append in one write; a half-written last line of a killed process is ended first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            torn = file.tell() and self.path.read_bytes()[-1:] != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(asdict(score)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def refresh(self) -> None:
        """Read what was added since."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                content = json.loads(line)
            except ValueError:
                continue
            trial = Trial(**content["trial"] | {"merged": tuple(content["trial"]["merged"])})
            score = Score(trial, content["accuracy"], content["macro_f1"], content["cpu_seconds"])
            self._known[score.trial] = score

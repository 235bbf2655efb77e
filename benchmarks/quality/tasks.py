"""A task: labelled rows, cut into what adapters are fitted on, what settings are chosen on, and what is only tested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from .task_names import SEEN, UNSEEN

HELD_BACK = 0.1
"""Share of the train part that no adapter sees; settings are chosen on it."""
Inputs = Sequence[str] | torch.Tensor


@dataclass(frozen=True)
class Rows:
    """Texts or images, and the index of each one's class."""

    inputs: Inputs
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, order: torch.Tensor) -> Rows:
        """The rows at the places `order`."""
        inputs = self.inputs[order] if isinstance(self.inputs, torch.Tensor) else [self.inputs[i] for i in order.tolist()]
        return Rows(inputs, self.labels[order])


@dataclass(frozen=True)
class Task:
    """Rows of a train and a test part, and what stands for each class: a description, or nothing where images stand for it."""

    name: str
    role: Literal["seen", "unseen"]
    train: Rows
    test: Rows
    descriptions: tuple[str, ...] = ()

    def fitted(self, count: int | None = None) -> Rows:
        """The rows adapters are trained on: the train part without what is held back, at most `count` of them."""
        return self.train.take(self._order(self.train)[self._held_back() :][:count])

    def validation(self, count: int | None = None) -> Rows:
        """The rows settings are chosen on: the held back part of the train part, at most `count` of them."""
        return self.train.take(self._order(self.train)[: self._held_back()][:count])

    def tested(self, count: int | None = None) -> Rows:
        """The test part, or as many of its rows, the same ones every time."""
        return self.test.take(self._order(self.test)[:count])

    def _held_back(self) -> int:
        return max(1, round(HELD_BACK * len(self.train)))

    def _order(self, rows: Rows) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:6])
        return torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))


def read_task(folder: Path, role: Literal["seen", "unseen"]) -> Task:
    """A task of text from `train.jsonl`, `test.jsonl` and `prompts.json`."""
    descriptions = tuple(json.loads((folder / "prompts.json").read_text()))
    return Task(folder.name, role, _read_rows(folder / "train.jsonl"), _read_rows(folder / "test.jsonl"), descriptions)


def read_text_tasks(data: Path) -> list[Task]:
    """The eight seen and four unseen tasks of a folder, in this order.

    Raises: SystemExit with the first task that is not there.
    """
    for name in (*SEEN, *UNSEEN):
        if not (data / name / "train.jsonl").is_file():
            raise SystemExit(f"{data}: no task {name}; `python benchmarks/quality fetch --data {data}` downloads the tasks")
    return [*(read_task(data / name, "seen") for name in SEEN), *(read_task(data / name, "unseen") for name in UNSEEN)]


def _read_rows(path: Path) -> Rows:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Rows([row["text"] for row in rows], torch.tensor([row["label"] for row in rows]))

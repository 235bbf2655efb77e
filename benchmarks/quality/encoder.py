"""An encoder with frozen heads: vectors of inputs against vectors of classes, so that all tasks share every weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch

from .tasks import Inputs, Task

TEMPERATURE = 20.0
"""Logits are this times the cosine of input and class."""


class Encoder(ABC):
    """A transformer, and how rows of its kind become batches and vectors."""

    name: str
    module: torch.nn.Module

    @abstractmethod
    def prepare(self, inputs: Inputs) -> Any:
        """What `batch` cuts from: tokens of texts, pixels of images."""

    @abstractmethod
    def lengths(self, prepared: Any) -> list[int]:
        """The cost of every row; rows of like cost share a batch."""

    @abstractmethod
    def vectors(self, module: torch.nn.Module, prepared: Any, rows: list[int]) -> torch.Tensor:
        """Vectors of length one of some rows; gradients flow."""

    @abstractmethod
    def describe(self, task: Task) -> torch.Tensor:
        """The class vectors of a task, by the plain encoder; computed once and frozen."""

    def encode(self, inputs: Inputs, batch: int = 64) -> torch.Tensor:
        """Vectors of all rows, in their order, by the module as it is."""
        prepared = self.prepare(inputs)
        lengths = self.lengths(prepared)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        cuts = [order[start : start + batch] for start in range(0, len(order), batch)]
        with torch.inference_mode():
            vectors = torch.cat([self.vectors(self.module, prepared, rows) for rows in cuts])
        return torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors)


def batches(lengths: list[int], size: int, draws: torch.Generator) -> Iterator[list[int]]:
    """Every row once, in random batches of rows of like cost."""
    order = torch.randperm(len(lengths), generator=draws).tolist()
    pools = [sorted(order[start : start + 16 * size], key=lengths.__getitem__) for start in range(0, len(order), 16 * size)]
    cut = [pool[start : start + size] for pool in pools for start in range(0, len(pool), size)]
    for index in torch.randperm(len(cut), generator=draws).tolist():
        yield cut[index]

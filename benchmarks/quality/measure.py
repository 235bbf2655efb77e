"""Accuracy and macro-F1 of an encoder on rows of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .encoder import Encoder
from .scores import Score, Trial
from .tasks import Task


def measure(encoder: Encoder, tasks: Sequence[Task], anchors: Mapping[str, torch.Tensor], trial: Trial) -> Score:
    """Score the encoder as it is on rows of each task."""
    accuracy: dict[str, float] = {}
    f1: dict[str, float] = {}
    for task in tasks:
        rows = task.validation(trial.rows) if trial.split == "validation" else task.tested(trial.rows)
        found = (encoder.encode(rows.inputs) @ anchors[task.name].T).argmax(1)
        accuracy[task.name] = (found == rows.labels).double().mean().item()
        f1[task.name] = macro_f1(found, rows.labels)
    return Score(trial, accuracy, f1)


def macro_f1(found: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean over the classes that occur of F1 = 2 hits / (found + there); a class never hit counts 0."""
    each = []
    for label in labels.unique().tolist():
        hits = ((found == label) & (labels == label)).sum().item()
        each.append(2 * hits / ((found == label).sum().item() + (labels == label).sum().item()))
    return sum(each) / len(each)

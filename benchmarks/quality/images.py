"""Tasks of small images: groups of classes of public sets, and named changes of them, each a task of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy
import torch

from .tasks import Rows, Task

SIDE = 28
LOW, HIGH = tuple(range(5)), tuple(range(5, 10))


@dataclass(frozen=True)
class Images:
    """Train and test parts of a set, (rows, 28, 28) in 0..1."""

    train: Rows
    test: Rows


@dataclass(frozen=True)
class Cut:
    """A task: some classes of a set, its images changed in one way."""

    name: str
    role: Literal["seen", "unseen"]
    source: str
    classes: tuple[int, ...]
    change: str


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "upright": lambda x: x,
    "turned_90": lambda x: x.rot90(1, (1, 2)),
    "turned_180": lambda x: x.rot90(2, (1, 2)),
    "turned_270": lambda x: x.rot90(3, (1, 2)),
    "mirrored": lambda x: x.flip(2),
    "inverted": lambda x: 1 - x,
    "noisy": lambda x: (x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
}
CUTS = (
    Cut("digits_high", "seen", "mnist", HIGH, "upright"),
    Cut("digits_low_turned_90", "seen", "mnist", LOW, "turned_90"),
    Cut("digits_high_inverted", "seen", "mnist", HIGH, "inverted"),
    Cut("letters_high", "seen", "notmnist", HIGH, "upright"),
    Cut("letters_low_turned_180", "seen", "notmnist", LOW, "turned_180"),
    Cut("letters_low_inverted", "seen", "notmnist", LOW, "inverted"),
    Cut("fashion", "seen", "fashion_mnist_sprite", LOW + HIGH, "upright"),
    Cut("digits_all_noisy", "unseen", "mnist", LOW + HIGH, "noisy"),
    Cut("letters_all_mirrored", "unseen", "notmnist", LOW + HIGH, "mirrored"),
    Cut("digits_all_turned_270", "unseen", "mnist", LOW + HIGH, "turned_270"),
)
"""The encoder is trained on the other halves, upright: digits 0 to 4 and letters A to E."""
LEARNT = (Cut("digits_low", "seen", "mnist", LOW, "upright"), Cut("letters_low", "seen", "notmnist", LOW, "upright"))
DIGITS = (
    Cut("digits_high", "seen", "digits", HIGH, "upright"),
    Cut("digits_low_turned_90", "seen", "digits", LOW, "turned_90"),
    Cut("digits_high_inverted", "seen", "digits", HIGH, "inverted"),
    Cut("digits_low_inverted", "seen", "digits", LOW, "inverted"),
    Cut("digits_high_turned_180", "seen", "digits", HIGH, "turned_180"),
    Cut("digits_all_noisy", "unseen", "digits", LOW + HIGH, "noisy"),
    Cut("digits_all_mirrored", "unseen", "digits", LOW + HIGH, "mirrored"),
)
DIGITS_LEARNT = (Cut("digits_low", "seen", "digits", LOW, "upright"),)


def read_image_tasks(data: Path | None) -> tuple[list[Task], list[Task]]:
    """The tasks, and those the encoder is trained on: of the sets in a folder, else of scikit-learn's digits."""
    if data is not None and all((data / cut.source / f"{cut.source}.npz").is_file() for cut in CUTS):
        sources = {name: _read(data / name / f"{name}.npz") for name in sorted({cut.source for cut in CUTS})}
        return [make(cut, sources) for cut in CUTS], [make(cut, sources) for cut in LEARNT]
    sources = {"digits": load_digits()}
    return [make(cut, sources) for cut in DIGITS], [make(cut, sources) for cut in DIGITS_LEARNT]


def make(cut: Cut, sources: dict[str, Images]) -> Task:
    """The rows of a task, classes numbered from 0."""
    images = sources[cut.source]
    return Task(cut.name, cut.role, _some(images.train, cut), _some(images.test, cut))


def load_digits() -> Images:
    """scikit-learn's 1797 digits of 8 x 8, every pixel three times as large and framed; each fourth row is a test row."""
    from sklearn.datasets import load_digits as load

    found = load()
    pixels = torch.tensor(found.images, dtype=torch.float32) / 16
    wide = torch.nn.functional.pad(pixels.repeat_interleave(3, 1).repeat_interleave(3, 2), (2, 2, 2, 2))
    labels = torch.tensor(found.target, dtype=torch.long)
    held = torch.arange(len(labels)) % 4 == 3
    return Images(Rows(wide[~held], labels[~held]), Rows(wide[held], labels[held]))


def _read(path: Path) -> Images:
    with numpy.load(path) as stored:
        parts = [
            Rows(torch.from_numpy(stored[f"x_{part}"]).float() / 255, torch.from_numpy(stored[f"y_{part}"]).long())
            for part in ("train", "test")
        ]
    return Images(*parts)


def _some(rows: Rows, cut: Cut) -> Rows:
    assert isinstance(rows.inputs, torch.Tensor)
    classes = torch.tensor(cut.classes)
    kept = torch.isin(rows.labels, classes)
    return Rows(CHANGES[cut.change](rows.inputs[kept]), torch.searchsorted(classes, rows.labels[kept]))

"""The quick start's world: scikit-learn's handwritten digits seen in four ways, and one small network to read them.

Images and labels are the real ones. A task is a way of looking at an image, so every task asks the same question (which
digit?) of one shared head, and merged adapters can be judged on all tasks at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
BASE = HERE / "base"
ADAPTERS = HERE / "adapters"

Images = np.ndarray

TASKS: dict[str, Callable[[Images], Images]] = {
    "edges": lambda x: np.abs(np.diff(x, axis=2, append=0)),
    "mirrored": lambda x: x[:, :, ::-1],
    "left_half": lambda x: np.where(np.arange(8) < 4, x, 0),
    "right_half": lambda x: np.where(np.arange(8) < 4, 0, x),
}


class Layer(nn.Module):
    """relu(linear(x)): the matrix an adapter changes."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, outer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


class DigitReader(nn.Module):
    """64 pixels in, 10 scores out. Adapters change the layers; the head is common to all tasks."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.name_or_path = "digit_reader"
        self.layers = nn.ModuleList(Layer(width if i else 64, width) for i in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def load_base() -> DigitReader:
    """The frozen base that every adapter was trained on."""
    sizes = json.loads((BASE / "config.json").read_text())
    model = DigitReader(sizes["width"], sizes["depth"])
    model.load_state_dict(load_file(BASE / "model.safetensors"))
    return model.eval().requires_grad_(False)


def split(part: str) -> tuple[Images, np.ndarray]:
    """`pretrain` (half of all images), `train` or `test` (a quarter each): no image is in two parts."""
    data: Any = load_digits()
    images, labels = data.images / 16, data.target
    everything = np.arange(len(labels))
    first, rest = train_test_split(everything, test_size=0.5, random_state=0, stratify=labels)
    train, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=labels[rest])
    chosen = {"pretrain": first, "train": train, "test": test}[part]
    return images[chosen], labels[chosen]


def examples(task: str | None, part: str) -> tuple[Tensor, Tensor]:
    """Pixels (m, 64) and labels (m,) of one part of the data as `task` sees it; `None` sees the images as they are."""
    images, labels = split(part)
    seen = TASKS[task](images) if task else images
    return torch.tensor(seen.reshape(-1, 64).copy(), dtype=torch.float32), torch.tensor(labels)


@torch.no_grad()
def accuracy(model: nn.Module, task: str | None, part: str = "test") -> float:
    """Percent of the images of one part, the held-out ones, that `model` reads right when it sees them as `task` does."""
    pixels, labels = examples(task, part)
    return 100 * float((model(pixels).argmax(dim=1) == labels).double().mean())

"""A small ViT trained here from scratch; what stands for a class is the mean of the plain encoder's vectors of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from .claims import claimed
from .encoder import Encoder, batches
from .images import SIDE
from .tasks import Inputs, Rows, Task

SHOTS = 20
"""Images of a class, of those adapters are trained on, whose mean is the class vector."""


@dataclass(frozen=True)
class Shape:
    """Size of the encoder and length of its training."""

    hidden: int = 128
    inner: int = 512
    layers: int = 4
    heads: int = 4
    patch: int = 7
    epochs: int = 12
    rate: float = 1e-3
    batch: int = 64


class ImageEncoder(Encoder):
    """A ViT in float32, frozen; an image's vector is the mean of its patches' last states, length one."""

    def __init__(self, folder: Path) -> None:
        self.name = "vision"
        self.module = ViTModel(ViTConfig.from_pretrained(folder), add_pooling_layer=False).eval()
        self.module.load_state_dict(load_file(folder / "model.safetensors"))
        self.module.requires_grad_(False)
        self.module.config._name_or_path = folder.name

    def prepare(self, inputs: Inputs) -> torch.Tensor:
        assert isinstance(inputs, torch.Tensor)
        return (inputs[:, None] - 0.5) / 0.5

    def lengths(self, prepared: Any) -> list[int]:
        return [1] * len(prepared)

    def vectors(self, module: torch.nn.Module, prepared: Any, rows: list[int]) -> torch.Tensor:
        return _vectors(module, prepared[rows])

    def describe(self, task: Task) -> torch.Tensor:
        rows = task.fitted()
        means = [self.encode(rows.inputs[rows.labels == label][:SHOTS]).mean(0) for label in rows.labels.unique()]
        return torch.nn.functional.normalize(torch.stack(means), dim=-1).clone()


def _vectors(module: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(module(pixel_values=pixels).last_hidden_state[:, 1:].mean(1), dim=-1)


def train_encoder(folder: Path, learnt: Sequence[Task], shape: Shape) -> Path:
    """The encoder's folder; trained first on all classes of some tasks together, where it is not there yet."""
    with claimed(folder.with_name(f".{folder.name}.lock"), wait=True):
        if not (folder / "model.safetensors").exists():
            torch.manual_seed(0)
            module = ViTModel(_config(shape), add_pooling_layer=False)
            _fit(module, _joined([task.fitted() for task in learnt]), shape)
            # Under the names the module has: transformers' own way of saving gives it others, which adapters do not have.
            module.config.save_pretrained(folder)
            save_file(module.state_dict(), folder / "model.safetensors", {"format": "pt"})
    return folder


def _config(shape: Shape) -> ViTConfig:
    return ViTConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=SIDE,
        patch_size=shape.patch,
        num_channels=1,
    )


def _joined(parts: Sequence[Rows]) -> Rows:
    labels, first = [], 0
    for rows in parts:
        labels.append(rows.labels + first)
        first += int(rows.labels.max()) + 1
    return Rows(torch.cat([rows.inputs for rows in parts if isinstance(rows.inputs, torch.Tensor)]), torch.cat(labels))


def _fit(module: torch.nn.Module, rows: Rows, shape: Shape) -> None:
    """Cross-entropy on the classes by a linear head that is thrown away; images are shifted by up to two pixels."""
    assert isinstance(rows.inputs, torch.Tensor)
    head = torch.nn.Linear(shape.hidden, int(rows.labels.max()) + 1)
    optimizer = torch.optim.AdamW([*module.parameters(), *head.parameters()], lr=shape.rate)
    draws = torch.Generator().manual_seed(0)
    pixels = (rows.inputs[:, None] - 0.5) / 0.5
    steps = [cut for _ in range(shape.epochs) for cut in batches([1] * len(rows), shape.batch, draws)]
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, shape.rate, total_steps=len(steps))
    module.train()
    for cut in steps:
        shift = torch.randint(-2, 3, (2,), generator=draws).tolist()
        logits = 10 * head(_vectors(module, pixels[cut].roll(shift, (2, 3))))
        loss = torch.nn.functional.cross_entropy(logits, rows.labels[cut])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    module.eval()

"""LoRA adapters by PEFT: one folder each, whole or not at all, so that a killed training goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from .claims import claimed
from .encoder import TEMPERATURE, Encoder, batches
from .tasks import Task
from .train_order import MULTITASK, Wanted

SHARED_SEED = 1_000


@dataclass(frozen=True)
class Training:
    """How every adapter is trained."""

    rows: int = 1200
    epochs: int = 1
    batch: int = 16
    rate: float = 1e-3
    warm: float = 0.1


def train_all(encoder: Encoder, tasks: Sequence[Task], wanted: Sequence[Wanted], cache: Path, how: Training) -> None:
    """Train what is not there yet; several processes may do so at once, each adapter is one process's."""
    anchors = {task.name: encoder.describe(task) for task in tasks}
    for one in wanted:
        folder = cache / "adapters" / one.group / one.task
        with claimed(folder.with_name(f".{folder.name}.lock")) as mine:
            if not mine or (folder / "training.json").exists():
                continue
            parts = [task for task in tasks if one.task in (task.name, MULTITASK)]
            figures = train(encoder, parts, anchors, one, folder, how)
            print(f"{one.group}/{one.task}: loss {figures['loss']:.3f}, {figures['cpu_seconds']:.0f} s of CPU", flush=True)


def train(
    encoder: Encoder, tasks: Sequence[Task], anchors: dict[str, torch.Tensor], one: Wanted, folder: Path, how: Training
) -> dict[str, float]:
    """Train one adapter on one task, or on several with batches in turn, and save it."""
    start = time.process_time()
    place = number(one.task)
    torch.manual_seed(SHARED_SEED + one.seed if one.initial == "shared" else place * 10 + one.seed)
    config = LoraConfig(r=one.rank, lora_alpha=2 * one.rank, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(encoder.module, config)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=how.rate, weight_decay=0.0)
    draws = torch.Generator().manual_seed(place + 7919 * one.seed)
    plan = list(_steps(encoder, tasks, how, draws))
    warm = max(1, int(how.warm * len(plan)))
    losses: list[float] = []
    model.train()
    for step, (name, prepared, labels, rows) in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = how.rate * min((step + 1) / warm, (len(plan) - step) / (len(plan) - warm + 1))
        logits = TEMPERATURE * encoder.vectors(model, prepared, rows) @ anchors[name].T
        loss = torch.nn.functional.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    last = losses[-max(1, len(losses) // 5) :]
    figures = {"loss": sum(last) / len(last), "steps": len(losses), "cpu_seconds": time.process_time() - start}
    _save(model, folder, asdict(how) | asdict(one) | figures)
    encoder.module = model.unload()
    return figures


def number(task: str) -> int:
    """What seeds of a task start from; no two tasks of a modality share it."""
    return sum(task.encode())


def _steps(
    encoder: Encoder, tasks: Sequence[Task], how: Training, draws: torch.Generator
) -> Iterator[tuple[str, object, torch.Tensor, list[int]]]:
    """Batches of every epoch; those of several tasks are mixed."""
    fitted = {task.name: task.fitted(how.rows) for task in tasks}
    prepared = {name: encoder.prepare(rows.inputs) for name, rows in fitted.items()}
    for _ in range(how.epochs):
        steps = [
            (name, prepared[name], fitted[name].labels, rows)
            for name in fitted
            for rows in batches(encoder.lengths(prepared[name]), how.batch, draws)
        ]
        yield from (steps[index] for index in torch.randperm(len(steps), generator=draws).tolist())


def _save(model: torch.nn.Module, folder: Path, record: dict[str, object]) -> None:
    stage = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    model.save_pretrained(stage)
    (stage / "training.json").write_text(json.dumps(record, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    stage.rename(folder)

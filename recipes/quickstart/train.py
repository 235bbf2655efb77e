"""Train the quick start's base and its four adapters again: `python recipes/quickstart/train.py [FOLDER]`.

One thread, fixed seeds and deterministic kernels: the same machine gives the same files. Another kind of CPU may round
differently, which is why the results are shipped and not rebuilt on every run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from digits import HERE, TASKS, DigitReader, examples
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

SIZES = {"width": 128, "depth": 2}
RANK, ALPHA = 16, 32


def fit(model: nn.Module, data: tuple[Tensor, Tensor], *, epochs: int, rate: float, decay: float, seed: int) -> None:
    """Cross entropy, AdamW, batches of 64 in an order that the seed fixes."""
    pixels, labels = data
    trained: Iterable[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=order).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()


def train_base(folder: Path) -> DigitReader:
    """Learn upright, whole digits from half of all images."""
    torch.manual_seed(0)
    model = DigitReader(**SIZES)
    fit(model, examples(None, "pretrain"), epochs=40, rate=3e-3, decay=1e-2, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "digit_reader", **SIZES}, indent=2) + "\n")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    return model


def train_adapter(base: DigitReader, task: str, folder: Path, seed: int) -> None:
    """One LoRA on the frozen base, from its own random start, on the images as `task` sees them."""
    model = DigitReader(**SIZES)
    model.load_state_dict(base.state_dict())
    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["linear"])
    adapted = get_peft_model(model, config)
    fit(adapted, examples(task, "train"), epochs=15, rate=3e-3, decay=0.0, seed=seed)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # PEFT's empty card
    (folder / "adapter_model.safetensors").chmod(0o644)


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    base = train_base(folder / "base")
    for seed, task in enumerate(TASKS, start=1):
        train_adapter(base, task, folder / "adapters" / task, seed)
        print(f"trained {folder / 'adapters' / task}")


if __name__ == "__main__":
    main()

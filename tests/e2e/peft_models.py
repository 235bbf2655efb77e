"""Tiny models with every kind of module that LoRA adapts, adapters of them made by PEFT, and merges of these in float64."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Plain(nn.Module):
    """Two linear layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 8)
        self.v_proj = nn.Linear(8, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.v_proj(self.q_proj(x).tanh())
        return torch.cat((hidden.flatten(1), self.head(hidden).flatten(1)), dim=1)


class Mixed(nn.Module):
    """Embedding, GPT-2's Conv1D, convolutions of one to three axes, and a linear layer; all of them reach the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.c_attn = Conv1D(8, 6)
        self.conv1 = nn.Conv1d(8, 5, 3)
        self.conv2 = nn.Conv2d(1, 6, (3, 2))
        self.conv3 = nn.Conv3d(1, 4, (1, 2, 3))
        self.q_proj = nn.Linear(8, 9)
        self.head = nn.Linear(9, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.c_attn(self.embed(ids))
        outputs = [
            hidden,
            self.conv1(hidden.mT),
            self.conv2(hidden[:, None]),
            self.conv3(hidden[:, None, None]),
            self.q_proj(hidden),
            self.head(self.q_proj(hidden)),
        ]
        return torch.cat([x.flatten(1) for x in outputs], dim=1)


EVERY = ["embed", "c_attn", "conv1", "conv2", "conv3", "q_proj"]


def plain() -> tuple[nn.Module, Tensor]:
    """A model and an input for it; the same ones at every call."""
    torch.manual_seed(7)
    return Plain(), torch.randn(3, 4, 6)


def mixed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(8)
    return Mixed(), torch.tensor([[0, 3, 10, 5, 2], [7, 7, 1, 9, 4]])


@dataclass(frozen=True)
class Trained:
    """One adapter as PEFT wrote it: its folder, and site -> (scale, B, A) in float64, B (d_out, r), A (r, d_in...)."""

    folder: Path
    factors: Mapping[str, tuple[float, Tensor, Tensor]]
    saved: Mapping[str, Tensor]

    def delta(self, site: str) -> Tensor:
        scale, b, a = self.factors[site]
        return scale * b @ a


def train(make: Any, folder: Path, seed: int, *, filled: float = 0.3, **settings: Any) -> Trained:
    """An adapter with random factors and changed heads, saved by PEFT, and what PEFT itself holds for it."""
    base, _ = make()
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **settings})
    model: Any = get_peft_model(base, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.copy_(filled * torch.randn(value.shape))
    model.save_pretrained(folder, save_embedding_layers=False)
    found: dict[str, tuple[float, Tensor, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        site = path.removeprefix("base_model.model.")
        if isinstance(module, peft.tuners.lora.LoraLayer):
            if "default" in module.lora_embedding_A:
                a, b = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
            else:
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            found[site] = (module.scaling["default"], b.detach().double().flatten(1), a.detach().double().flatten(1))
        elif isinstance(module, peft.utils.ModulesToSaveWrapper):
            state = module.modules_to_save["default"].state_dict()
            saved |= {f"{site}.{name}": value.double().clone() for name, value in state.items()}
    return Trained(folder, found, saved)


def forward_with(make: Any, deltas: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> Tensor:
    """The base's answer in float64 once every delta (d_out, d_in) is added to its weight and heads are replaced."""
    base, x = make()
    model = copy.deepcopy(base).double()
    modules = dict(model.named_modules())
    with torch.no_grad():
        for site, delta in deltas.items():
            weight = modules[site].weight
            across = isinstance(modules[site], nn.Embedding | Conv1D)
            weight += (delta.T if across else delta).reshape(weight.shape)
        for name, value in saved.items():
            module, _, leaf = name.rpartition(".")
            getattr(modules[module], leaf).copy_(value)
        return model(x.double() if x.is_floating_point() else x)


def forward_loaded(make: Any, folder: Path) -> Tensor:
    """The answer of the base with the adapter in `folder`, loaded and applied by PEFT, in float64."""
    base, x = make()
    model: Any = peft.PeftModel.from_pretrained(base, str(folder))
    model = model.eval().double()
    with torch.no_grad():
        return model(x.double() if x.is_floating_point() else x)

"""The golden cases of element-wise and factor methods, read once."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from robustmerge_kit.factors import FactorStack, Weights

GOLDEN = Path(__file__).parents[1] / "golden"


def names(*methods: str) -> list[str]:
    """The cases of the given methods."""
    cases = {path.parent.name: json.loads(path.read_text())["method"] for path in sorted(GOLDEN.glob("*/case.json"))}
    return [name for name, method in cases.items() if method in methods]


class Case:
    def __init__(self, name: str) -> None:
        self.spec: dict[str, Any] = json.loads((GOLDEN / name / "case.json").read_text())
        self.inputs = load_file(GOLDEN / name / "inputs.safetensors")
        self.expected = load_file(GOLDEN / name / "expected.safetensors")
        self.sites = [site["name"] for site in self.spec["sites"]]
        self.tolerance: float = self.spec["tolerance"]["value"]

    def stack(self, site: str, dtype: torch.dtype | None = None) -> FactorStack:
        entries = self.spec["adapters"]
        a = tuple(self.inputs[f"{entry['name']}.{site}.lora_A"] for entry in entries)
        b = tuple(self.inputs[f"{entry['name']}.{site}.lora_B"] for entry in entries)
        weights = [entry["weight"] for entry in entries]
        scaled = tuple(entry["weight"] * entry["scale"] for entry in entries)
        if dtype is not None:
            a, b = (tuple(x.to(dtype) for x in stack) for stack in (a, b))
        return FactorStack(a, b, scaled, Weights.of(weights))

    def error(self, site: str, delta: torch.Tensor) -> float:
        want = self.expected[f"{site}.delta"].double()
        return float((delta.double() - want).norm() / want.norm())

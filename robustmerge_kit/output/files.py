"""The files of an adapter folder: weights at planned offsets, then everything around them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..plan import Plan
from ..shards import TensorSpec
from .config import adapter_config
from .tensor_files import TensorFiles, write_bytes, write_json


class AdapterFiles:
    """Writes one adapter into a staged folder. Tensors come in any order through `write`; `close` makes the folder complete."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        target = plan.target
        alphas = {target.alpha_name(step.model): step.width for step in plan.steps} if target.alpha_name else {}
        alpha_specs = [TensorSpec(name, "float32", ()) for name in alphas]
        files: dict[str, tuple[TensorSpec, ...]] = {}
        if target.extras is None:
            specs = (*plan.factor_specs, *plan.extra_specs, *alpha_specs)
            files[target.weights] = tuple(sorted(specs, key=lambda spec: spec.name))
        else:
            files[target.weights] = plan.factor_specs
            files[target.extras] = plan.extra_specs
        self._tensors = TensorFiles(folder, files)
        for name, rank in alphas.items():
            self.write(name, torch.tensor(float(rank)))

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store one planned tensor."""
        self._tensors.write(name, tensor)

    def close(self) -> None:
        """Finish the weights and write the configuration.

        Raises: OutputError when the disk refuses.
        """
        self._tensors.close()
        if self._plan.target.layout != "same":
            ranks = {step.site: step.width for step in self._plan.steps}
            self.write_json("adapter_config.json", adapter_config(self._plan, max(ranks.values()), ranks))
        if self._plan.target.layout == "llava":
            source = self._plan.adapters[0].source.folder / "config.json"
            self.write_bytes("config.json", source.read_bytes())

    def abandon(self) -> None:
        """Close open files after a failure."""
        self._tensors.abandon()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder.

        Raises: OutputError when the disk refuses.
        """
        write_json(self._folder / name, content)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file into the folder, to the disk.

        Raises: OutputError when the disk refuses.
        """
        write_bytes(self._folder / name, content)

"""The files of an adapter folder: weights at planned offsets, then everything around them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import OutputError
from ..plan import Plan
from ..shards import ShardWriter, TensorSpec, map_safetensors, write_pickle
from .config import adapter_config


class AdapterFiles:
    """Writes one adapter into a staged folder. Tensors come in any order through `write`; `close` makes the folder complete."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._files: dict[str, tuple[TensorSpec, ...]] = {}
        target = plan.target
        alphas = {target.alpha_name(step.model): step.width for step in plan.steps} if target.alpha_name else {}
        alpha_specs = [TensorSpec(name, "float32", ()) for name in alphas]
        if target.extras is None:
            specs = (*plan.factor_specs, *plan.extra_specs, *alpha_specs)
            self._files[target.weights] = tuple(sorted(specs, key=lambda spec: spec.name))
        else:
            self._files[target.weights] = plan.factor_specs
            self._files[target.extras] = plan.extra_specs
        self._writers: dict[str, ShardWriter] = {}
        self._writer_of: dict[str, ShardWriter] = {}
        for name, specs in self._files.items():
            try:
                writer = ShardWriter(self._scratch(name), specs)
            except OutputError:
                self.abandon()
                raise
            self._writers[name] = writer
            self._writer_of |= dict.fromkeys((spec.name for spec in specs), writer)
        for name, rank in alphas.items():
            self.write(name, torch.tensor(float(rank)))

    def write(self, name: str, tensor: Tensor) -> None:
        """Store one planned tensor."""
        self._writer_of[name].write(name, tensor)

    def close(self) -> None:
        """Finish the weights and write the configuration.

        Raises: OutputError when the disk refuses.
        """
        for name, writer in self._writers.items():
            writer.close()
            scratch = self._scratch(name)
            if scratch.name != name:
                tensors = map_safetensors(scratch)
                write_pickle(self._folder / name, {spec.name: tensors[spec.name] for spec in self._files[name]})
                scratch.unlink()
        if self._plan.target.layout != "same":
            ranks = {step.site: step.width for step in self._plan.steps}
            self.write_json("adapter_config.json", adapter_config(self._plan, max(ranks.values()), ranks))
        if self._plan.target.layout == "llava":
            source = self._plan.adapters[0].source.folder / "config.json"
            self.write_bytes("config.json", source.read_bytes())

    def abandon(self) -> None:
        """Close open files after a failure."""
        for writer in self._writers.values():
            writer.abandon()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder."""
        self.write_bytes(name, (json.dumps(content, indent=2, sort_keys=False, ensure_ascii=False) + "\n").encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file into the folder, to the disk.

        Raises: OutputError when the disk refuses.
        """
        path = self._folder / name
        try:
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError.from_os(error, path) from error

    @property
    def nbytes(self) -> int:
        """Bytes of the folder so far."""
        return sum(path.stat().st_size for path in self._folder.iterdir())

    def _scratch(self, name: str) -> Path:
        """Torch's pickle cannot be written at offsets, so such a file is first laid out as safetensors beside it."""
        return self._folder / (name if name.endswith(".safetensors") else f".{name}.safetensors")

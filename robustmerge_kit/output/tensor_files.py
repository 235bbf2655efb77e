"""Files written into a staged folder: tensors whose names, shapes and dtypes are known beforehand, JSON, small texts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import OutputError
from ..shards import ShardWriter, TensorSpec, map_safetensors, write_pickle


class TensorFiles:
    """The tensor files of one folder; no two of them hold tensors of one name.

    Tensors come in any order through `write`. A name that does not end in `.safetensors` becomes a torch pickle, whose tensors
    lie in the order of its specs. `metadata` goes into the header of every safetensors file.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, Sequence[TensorSpec]], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._files = files
        self._writers: dict[str, ShardWriter] = {}
        self._writer_of: dict[str, ShardWriter] = {}
        for name, specs in files.items():
            try:
                writer = ShardWriter(self._scratch(name), specs, metadata)
            except OutputError:
                self.abandon()
                raise
            self._writers[name] = writer
            self._writer_of |= dict.fromkeys((spec.name for spec in specs), writer)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store one planned tensor."""
        self._writer_of[name].write(name, tensor)

    def close(self) -> None:
        """Finish every file.

        Raises: OutputError when the disk refuses.
        """
        for name, writer in self._writers.items():
            writer.close()
            scratch = self._scratch(name)
            if scratch.name != name:
                tensors = map_safetensors(scratch)
                write_pickle(self._folder / name, {spec.name: tensors[spec.name] for spec in self._files[name]})
                scratch.unlink()

    def abandon(self) -> None:
        """Close open files after a failure."""
        for writer in self._writers.values():
            writer.abandon()

    def _scratch(self, name: str) -> Path:
        """Torch's pickle cannot be written at offsets, so such a file is first laid out as safetensors beside it."""
        return self._folder / (name if name.endswith(".safetensors") else f".{name}.safetensors")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, to the disk.

    Raises: OutputError when the disk refuses.
    """
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=False, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file that is not there yet, to the disk.

    Raises: OutputError when the disk refuses.
    """
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError.from_os(error, path) from error

"""Safetensors files, written: header and length are on the disk before the first tensor."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from .placed import PlacedTensors
from .tensors import CODE_OF, TensorSpec, bytes_of

if TYPE_CHECKING:
    import torch


class ShardWriter(PlacedTensors):
    """A safetensors file whose header and length are on disk before any tensor.

    The file is whole once `close` returns; `close` refuses when a tensor is missing. `again`: go on with a file that an
    earlier writer of the same specs left.
    """

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None, again: bool = False
    ) -> None:
        starts: dict[str, tuple[TensorSpec, int]] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        position = 0
        for spec in specs:
            if spec.name in starts:
                raise ValueError(f"tensor {spec.name} is planned twice")
            header[spec.name] = {
                "dtype": CODE_OF[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [position, position + spec.nbytes],
            }
            starts[spec.name] = (spec, position)
            position += spec.nbytes
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % 8)
        data_start = 8 + len(encoded)
        self.nbytes = data_start + position
        self._missing = set(starts)
        self._lock = threading.Lock()
        super().__init__(path, {name: (spec, data_start + start) for name, (spec, start) in starts.items()}, create=not again)
        try:
            with self._refusals():
                os.posix_fallocate(self._fd, 0, self.nbytes)
            self._write_bytes(memoryview(struct.pack("<Q", len(encoded)) + encoded), 0)
        except OutputError:
            self.abandon()
            raise

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store a whole tensor.

        Raises: OutputError when the disk refuses; ValueError when dtype or shape are not those planned.
        """
        spec, offset = self._places[name]
        if tuple(tensor.shape) != spec.shape or str(tensor.dtype) != f"torch.{spec.dtype}":
            raise ValueError(f"{name}: got {tensor.dtype} {tuple(tensor.shape)}, planned {spec.dtype} {spec.shape}")
        if spec.nbytes:
            ready = tensor.device.type == "cpu" and tensor.is_contiguous()
            self._write_bytes(bytes_of(tensor if ready else tensor.detach().cpu().contiguous()), offset)
        self.finish(name)

    def finish(self, name: str) -> None:
        """Say that all elements of a tensor have been stored."""
        with self._lock:
            self._missing.discard(name)

    def close(self) -> None:
        """Bring everything to the disk and close.

        Raises: OutputError when the disk refuses; ValueError when a planned tensor was never written.
        """
        if self._missing:
            raise ValueError(f"{len(self._missing)} tensors were planned but not written: {sorted(self._missing)[:3]}")
        super().close()

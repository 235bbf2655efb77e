"""Safetensors files, written: header and length are on the disk before the first tensor."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import OutputError
from .tensors import CODE_OF, ITEMSIZE, TensorSpec, bytes_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class ShardWriter:
    """A safetensors file whose header and length are on disk before any tensor; tensors land in any order, from any thread.

    The file is whole once `close` returns; `close` refuses when a tensor is missing. `again`: go on with a file that an
    earlier writer of the same specs left.
    """

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None, again: bool = False
    ) -> None:
        self.path = path
        self._offsets: dict[str, tuple[TensorSpec, int]] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        position = 0
        for spec in specs:
            if spec.name in self._offsets:
                raise ValueError(f"tensor {spec.name} is planned twice")
            header[spec.name] = {
                "dtype": CODE_OF[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [position, position + spec.nbytes],
            }
            self._offsets[spec.name] = (spec, position)
            position += spec.nbytes
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._data_start = 8 + len(encoded)
        self.nbytes = self._data_start + position
        self._missing = set(self._offsets)
        self._lock = threading.Lock()
        creating = 0 if again else os.O_CREAT | os.O_EXCL
        self._fd = self._guard(lambda: os.open(path, os.O_RDWR | os.O_CLOEXEC | creating, 0o666))
        try:
            self._guard(lambda: os.posix_fallocate(self._fd, 0, self.nbytes))
            self._write_all(memoryview(struct.pack("<Q", len(encoded)) + encoded), 0)
        except OutputError:
            self.abandon()
            raise

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store a whole tensor.

        Raises: OutputError when the disk refuses; ValueError when dtype or shape are not those planned.
        """
        spec, position = self._offsets[name]
        if tuple(tensor.shape) != spec.shape or str(tensor.dtype) != f"torch.{spec.dtype}":
            raise ValueError(f"{name}: got {tensor.dtype} {tuple(tensor.shape)}, planned {spec.dtype} {spec.shape}")
        if spec.nbytes:
            self._write_all(bytes_of(tensor.detach().cpu().contiguous()), self._data_start + position)
        self.finish(name)

    def write_flat(self, name: str, start: int, tensor: torch.Tensor) -> None:
        """Store consecutive elements of a tensor, from element `start` of the flattened one; `finish` says it is whole.

        Raises: OutputError when the disk refuses; ValueError when dtype or place are not those planned.
        """
        spec, position = self._offsets[name]
        if start + tensor.numel() > spec.numel or str(tensor.dtype) != f"torch.{spec.dtype}":
            raise ValueError(f"{name}: got {tensor.numel()} of {tensor.dtype} at {start}, planned {spec.dtype} {spec.shape}")
        if tensor.numel():
            self._write_all(bytes_of(tensor), self._data_start + position + start * ITEMSIZE[spec.dtype])

    def read_flat(self, name: str, start: int, stop: int) -> bytes:
        """What lies in the file where elements start to stop of a tensor belong."""
        spec, position = self._offsets[name]
        size = ITEMSIZE[spec.dtype]
        return os.pread(self._fd, (stop - start) * size, self._data_start + position + start * size)

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
        try:
            self._guard(lambda: os.fsync(self._fd))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file without a word about its content."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_all(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            done += self._guard(lambda: os.pwrite(self._fd, data[done:], offset + done))  # noqa: B023

    def _guard(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            raise OutputError.from_os(error, self.path) from error

"""A tensor file open for writing: every tensor has its place, which is written in any order, from any thread."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from .tensors import ITEMSIZE, TensorSpec, bytes_of

if TYPE_CHECKING:
    import torch


class PlacedTensors:
    """Tensors at known places of one file.

    places: name -> what lies there, and where it begins in bytes. create: make the file, which must not exist yet.
    """

    def __init__(self, path: Path, places: Mapping[str, tuple[TensorSpec, int]], create: bool) -> None:
        self.path = path
        self._places = places
        with self._refusals():
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0), 0o666)

    def write_flat(self, name: str, start: int, tensor: torch.Tensor) -> None:
        """Write consecutive elements of a tensor, from element `start` of the flattened one.

        Raises: OutputError when the disk refuses; ValueError when dtype or place are not those of the tensor.
        """
        spec, offset = self._places[name]
        if start + tensor.numel() > spec.numel or str(tensor.dtype) != f"torch.{spec.dtype}":
            raise ValueError(f"{name}: got {tensor.numel()} of {tensor.dtype} at {start}, placed {spec.dtype} {spec.shape}")
        if tensor.numel():
            self._write_bytes(bytes_of(tensor), offset + start * ITEMSIZE[spec.dtype])

    def read_flat(self, name: str, start: int, stop: int) -> bytes:
        """What lies in the file where elements start to stop of a tensor belong."""
        spec, offset = self._places[name]
        size = ITEMSIZE[spec.dtype]
        return os.pread(self._fd, (stop - start) * size, offset + start * size)

    def close(self) -> None:
        """Bring everything to the disk and close.

        Raises: OutputError when the disk refuses.
        """
        try:
            with self._refusals():
                os.fsync(self._fd)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file without a word about its content."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_bytes(self, data: memoryview, offset: int) -> None:
        done = 0
        with self._refusals():
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], offset + done)

    @contextmanager
    def _refusals(self) -> Generator[None]:
        """What the disk refuses is an error of the output, which names the file."""
        try:
            yield
        except OSError as error:
            raise OutputError.from_os(error, self.path) from error

"""A safetensors file copied by the kernel, whose tensors are then overwritten in place."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import OutputError
from .stored import offset_of
from .tensors import ITEMSIZE, Shard, bytes_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_FICLONE = 0x40049409
_CHUNK = 64 << 20
_UNSUPPORTED = (
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content the cheapest way there is: shared blocks, else within the kernel, else by reading and writing.

    Raises: OutputError when the disk refuses.
    """
    _copy_around(source, target, ())


def _copy_around(source: Path, target: Path, holes: Sequence[tuple[int, int]]) -> None:
    """Copy a file except the bytes of `holes`, ascending (start, end), for which the target only gets room."""
    try:
        with source.open("rb") as reader, target.open("xb") as writer:
            if _share(reader.fileno(), writer.fileno()):
                return
            size = os.fstat(reader.fileno()).st_size
            if holes:
                os.posix_fallocate(writer.fileno(), 0, size)
            position = 0
            for start, end in (*holes, (size, size)):
                if start > position:
                    _copy_span(reader.fileno(), writer.fileno(), position, start)
                position = max(position, end)
    except OSError as error:
        raise OutputError.from_os(error, target) from error


class ShardClone:
    """A copy of `source` at `path`; tensors are overwritten in any order, from any thread, with their own dtype and shape.

    rewritten: elements of tensors that will be overwritten for certain, as disjoint (start, end); they need not be copied.
    again: go on with a copy that an earlier one left.
    """

    def __init__(
        self, path: Path, source: Shard, rewritten: Mapping[str, Sequence[tuple[int, int]]], again: bool = False
    ) -> None:
        self.path = path
        self._source = source
        if not again:
            spans = [
                (self._offset(name, start), self._offset(name, end)) for name in rewritten for start, end in rewritten[name]
            ]
            _copy_around(source.path, path, sorted(spans))
        self._fd = self._guard(lambda: os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def write_flat(self, name: str, start: int, tensor: torch.Tensor) -> None:
        """Overwrite consecutive elements of a tensor, from element `start` of the flattened one.

        Raises: OutputError when the disk refuses; ValueError when dtype or place are not those stored.
        """
        spec = self._source.tensors[name].spec
        if start + tensor.numel() > spec.numel or str(tensor.dtype) != f"torch.{spec.dtype}":
            raise ValueError(f"{name}: got {tensor.numel()} of {tensor.dtype} at {start}, stored {spec.dtype} {spec.shape}")
        data, offset, done = bytes_of(tensor), self._offset(name, start), 0
        while done < len(data):
            done += self._guard(lambda: os.pwrite(self._fd, data[done:], offset + done))  # noqa: B023

    def read_flat(self, name: str, start: int, stop: int) -> bytes:
        """What lies in the copy where elements start to stop of a tensor belong."""
        size = ITEMSIZE[self._source.tensors[name].spec.dtype]
        return os.pread(self._fd, (stop - start) * size, self._offset(name, start))

    def finish(self, name: str) -> None:
        """Nothing to do: every tensor of a copy is there from the start."""

    def close(self) -> None:
        """Bring everything to the disk and close.

        Raises: OutputError when the disk refuses.
        """
        try:
            self._guard(lambda: os.fsync(self._fd))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file without a word about its content."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _offset(self, name: str, start: int) -> int:
        ref = self._source.tensors[name]
        return offset_of(ref) + start * ITEMSIZE[ref.spec.dtype]

    def _guard(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            raise OutputError.from_os(error, self.path) from error


def _share(reader: int, writer: int) -> bool:
    """Let both files have the same blocks until one is written to; False where the file system cannot."""
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _copy_span(reader: int, writer: int, start: int, end: int) -> None:
    """Copy bytes to the same place, without carrying them through this process where the kernel can."""
    position, in_kernel = start, True
    while position < end:
        size = min(_CHUNK, end - position)
        if in_kernel:
            try:
                count = os.copy_file_range(reader, writer, size, position, position)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                in_kernel = False
                continue
        else:
            count = os.pwrite(writer, os.pread(reader, size, position), position)
        if count == 0:
            return
        position += count

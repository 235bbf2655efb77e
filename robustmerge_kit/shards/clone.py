"""A safetensors file copied by the kernel, whose tensors are then overwritten in place."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import OutputError
from .placed import PlacedTensors
from .stored import offset_of
from .tensors import ITEMSIZE, Shard

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


class ShardClone(PlacedTensors):
    """A copy of `source` at `path`; tensors are overwritten with their own dtype and shape.

    rewritten: elements of tensors that will be overwritten for certain, as disjoint (start, end); they need not be copied.
    again: go on with a copy that an earlier one left.
    """

    def __init__(
        self, path: Path, source: Shard, rewritten: Mapping[str, Sequence[tuple[int, int]]], again: bool = False
    ) -> None:
        places = {name: (ref.spec, offset_of(ref)) for name, ref in source.tensors.items()}
        if not again:
            spans: list[tuple[int, int]] = []
            for name, ranges in rewritten.items():
                spec, offset = places[name]
                size = ITEMSIZE[spec.dtype]
                spans += [(offset + start * size, offset + end * size) for start, end in ranges]
            _copy_around(source.path, path, sorted(spans))
        super().__init__(path, places, create=False)

    def finish(self, name: str) -> None:
        """Nothing to do: every tensor of a copy is there from the start."""


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

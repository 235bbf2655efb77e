"""Safetensors files, read: the header is checked against the file's size, tensors are read when asked for."""

from __future__ import annotations

import json
import os
import struct
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .impostors import AGAIN, refuse_impostor
from .tensors import CODES, ITEMSIZE, Shard, TensorRef, TensorSpec, check_names

if TYPE_CHECKING:
    import torch

HEADER_LIMIT = 100_000_000
"""Largest safetensors header that the reference implementation accepts, in bytes."""


def is_safetensors(path: Path) -> bool:
    """Whether a file of another suffix starts like safetensors: a plausible header length, then a JSON object."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= HEADER_LIMIT


class OpenFile:
    """A file descriptor that is opened on first use and closed with its last reference."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._fd: int | None = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor(), [buffer[done:]], offset + done)
            if count == 0:
                raise InputError(
                    f"ends at byte {offset + done}, {len(buffer) - done} bytes too early; it changed after it was opened",
                    where=str(self.path),
                    hint="leave the inputs alone while a merge runs, then start again",
                )
            done += count

    def will_read(self, offset: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor(), offset, size, os.POSIX_FADV_WILLNEED)

    def _descriptor(self) -> int:
        if self._fd is None:
            with self._lock:
                if self._fd is None:
                    fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                    weakref.finalize(self, os.close, fd)
                    self._fd = fd
        return self._fd


@dataclass(frozen=True)
class StoredTensor:
    spec: TensorSpec
    file: OpenFile
    offset: int

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def where(self) -> str:
        return f"{self.path}: tensor {self.spec.name}"

    def read(self) -> torch.Tensor:
        return self.read_flat(0, self.spec.numel).view(self.spec.shape)

    def read_flat(self, start: int, stop: int, into: torch.Tensor | None = None) -> torch.Tensor:
        import numpy
        import torch

        dtype = getattr(torch, self.spec.dtype)
        if start == stop:
            return torch.empty(0, dtype=dtype)
        size = ITEMSIZE[self.spec.dtype]
        # A NumPy buffer, since every call of torch hands the interpreter to another thread and back.
        count = (stop - start) * size
        buffer = numpy.empty(count, numpy.uint8) if into is None else into.numpy()[:count]
        self.read_into(buffer.data, start * size)
        return torch.frombuffer(buffer, dtype=dtype)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the bytes from `start` on.

        Raises: InputError when the file has changed or cannot be read.
        """
        try:
            self.file.read_into(buffer, self.offset + start)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=self.where) from error


def offset_of(ref: TensorRef) -> int:
    """Where a tensor of a safetensors file begins, in bytes from the start of the file."""
    assert isinstance(ref, StoredTensor)
    return ref.offset


def will_read(ref: TensorRef) -> None:
    """Tell the system that a tensor is needed soon, so that the disk works while other things are computed."""
    if isinstance(ref, StoredTensor):
        ref.file.will_read(ref.offset, ref.spec.nbytes)


def open_safetensors(path: Path) -> Shard:
    """Read the header of a safetensors file and check every promise it makes against the file's size.

    Raises: InputError for Git LFS pointers, web pages, truncated or oversized files, malformed headers, and offsets that
        overlap, leave holes or point outside the file.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(512)
            refuse_impostor(head, size, where)
            if size < 8:
                raise InputError(f"is truncated: {size} bytes, not even a header length", where=where, hint=AGAIN)
            (length,) = struct.unpack("<Q", head[:8])
            if head.startswith(b"PK\x03\x04"):
                raise InputError("is a torch zip file, not safetensors", where=where, hint="rename it to .bin")
            if length > HEADER_LIMIT:
                raise InputError(
                    f"is no safetensors file, or is damaged: announces a header of {length} bytes, the limit is {HEADER_LIMIT}",
                    where=where,
                    hint=AGAIN,
                )
            if 8 + length > size:
                raise InputError(
                    f"is truncated: its header needs {8 + length} bytes, the file has {size}", where=where, hint=AGAIN
                )
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=where) from error
    entries = _parse_header(header, where)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError("has header metadata that is not a map of text to text", where=where, hint=AGAIN)
    data_start = 8 + length
    opened = OpenFile(path)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorRef] = {}
    for name, entry in entries.items():
        spec, begin, end = _check_entry(name, entry, where)
        spans.append((begin, end, name))
        tensors[name] = StoredTensor(spec, opened, data_start + begin)
    _check_spans(spans, size - data_start, where)
    return Shard(path, tensors, metadata)


def _parse_header(header: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise InputError(f"has a header that names {key!r} twice", where=where, hint=AGAIN)
            seen[key] = value
        return seen

    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"has a header that is not JSON ({error})", where=where, hint=AGAIN) from error
    if not isinstance(parsed, dict):
        raise InputError("has a header that is not a JSON object", where=where, hint=AGAIN)
    check_names(parsed.keys(), where)
    return parsed  # pyright: ignore[reportUnknownVariableType]


def _check_entry(name: str, entry: Any, where: str) -> tuple[TensorSpec, int, int]:
    def whole(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    def fail(what: str) -> InputError:
        return InputError(f"tensor {name}: {what}", where=where, hint=AGAIN)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:  # pyright: ignore[reportUnknownArgumentType]
        raise fail("its header entry must hold dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(code, str) or code not in CODES:
        raise fail(f"unknown dtype {str(code)[:80]!r}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(whole(axis) for axis in shape):  # pyright: ignore
        raise fail(f"shape {str(shape)[:80]} is not a list of sizes")  # pyright: ignore
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(whole(o) for o in offsets):  # pyright: ignore
        raise fail(f"data_offsets {str(offsets)[:80]} are not two byte positions")  # pyright: ignore
    begin, end = offsets  # pyright: ignore[reportUnknownVariableType]
    spec = TensorSpec(name, CODES[code][0], tuple(shape))  # pyright: ignore[reportUnknownArgumentType]
    if begin + spec.nbytes != end:
        raise fail(
            f"{list(spec.shape)} of {spec.dtype} needs {spec.nbytes} bytes, data_offsets {begin}..{end} hold {end - begin}"
        )
    return spec, begin, end  # pyright: ignore[reportUnknownVariableType]


def _check_spans(spans: list[tuple[int, int, str]], available: int, where: str) -> None:
    position = 0
    previous = ""
    for begin, end, name in sorted(spans):
        if end > available:
            raise InputError(
                f"is truncated: tensor {name} ends at data byte {end}, the file holds {available}", where=where, hint=AGAIN
            )
        if begin < position:
            raise InputError(f"tensors {previous} and {name} overlap in the file", where=where, hint=AGAIN)
        if begin > position:
            raise InputError(f"has a hole of {begin - position} bytes before tensor {name}", where=where, hint=AGAIN)
        position, previous = end, name
    if position != available:
        raise InputError(
            f"is longer than its header says: {available - position} bytes after the last tensor", where=where, hint=AGAIN
        )


def read_scalar(ref: TensorRef) -> float:
    """The number in a tensor of one element; from safetensors without torch, so that headers can be read without it.

    Raises: InputError when the tensor has more than one element or is not of a floating point or integer type.
    """
    spec = ref.spec
    if spec.numel != 1 or spec.dtype not in (*_SCALAR_FORMATS, "bfloat16"):
        raise InputError(f"is {spec.dtype} {list(spec.shape)}, not one number", where=ref.where)
    if not isinstance(ref, StoredTensor):
        return float(ref.read())
    data = bytearray(spec.nbytes)
    ref.file.read_into(memoryview(data), ref.offset)
    if spec.dtype == "bfloat16":
        return struct.unpack("<f", b"\0\0" + data)[0]
    return float(struct.unpack(f"<{_SCALAR_FORMATS[spec.dtype]}", data)[0])


_SCALAR_FORMATS = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint8": "B",
}


def map_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file as views of the mapped file, in the order they lie there."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.offset_keys()}

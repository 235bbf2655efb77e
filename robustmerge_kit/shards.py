"""Tensor files: lazy references to stored tensors, and a writer that knows every offset before the first byte.

Only this module knows how tensors lie in files. A `TensorRef` is a promise: name, dtype, shape and place are known from the
header, bytes are read when `read` is called. Reading needs no torch until then, so that validating a recipe stays cheap.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .errors import InputError, OutputError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

HEADER_LIMIT = 100_000_000
"""Largest safetensors header that the reference implementation accepts, in bytes."""

_CODES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_CODE_OF = {name: code for code, (name, _) in _CODES.items()}
ITEMSIZE = dict(_CODES.values())
"""Bytes of one element by dtype name, as torch spells it: float32, bfloat16, ..."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without its numbers. `dtype` is torch's name without the prefix."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZE[self.dtype]


class TensorRef(Protocol):
    """A tensor in a file. `where` names file and tensor for messages."""

    @property
    def spec(self) -> TensorSpec: ...

    @property
    def path(self) -> Path: ...

    @property
    def where(self) -> str: ...

    def read(self) -> torch.Tensor:
        """The tensor in CPU memory of its own.

        Raises: InputError when the file has changed or cannot be read.
        """
        ...


@dataclass(frozen=True)
class Shard:
    """One tensor file, opened: references by stored name, header metadata, remarks for the user."""

    path: Path
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()


def open_tensors(path: Path) -> Shard:
    """Open a tensor file by its content: safetensors, else torch's pickle formats (tensors only, nothing is executed).

    Raises: InputError for everything that is not a whole, well-formed tensor file.
    """
    if path.suffix == ".safetensors" or _is_safetensors(path):
        return open_safetensors(path)
    return open_pickle(path)


def _is_safetensors(path: Path) -> bool:
    """Whether a file of another suffix starts like safetensors: a plausible header length, then a JSON object."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= HEADER_LIMIT


# --- safetensors, reading ---------------------------------------------------------------------------------------------


class _OpenFile:
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

    def _descriptor(self) -> int:
        if self._fd is None:
            with self._lock:
                if self._fd is None:
                    fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                    weakref.finalize(self, os.close, fd)
                    self._fd = fd
        return self._fd


@dataclass(frozen=True)
class _StoredTensor:
    spec: TensorSpec
    file: _OpenFile
    offset: int

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def where(self) -> str:
        return f"{self.path}: tensor {self.spec.name}"

    def read(self) -> torch.Tensor:
        import torch

        out = torch.empty(self.spec.shape, dtype=getattr(torch, self.spec.dtype))
        if self.spec.nbytes:
            try:
                self.file.read_into(_bytes_of(out), self.offset)
            except OSError as error:
                raise InputError(f"cannot be read: {error.strerror}", where=self.where) from error
        return out


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


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
            _refuse_impostor(head, size, where)
            if size < 8:
                raise InputError(f"is truncated: {size} bytes, not even a header length", where=where, hint=_AGAIN)
            (length,) = struct.unpack("<Q", head[:8])
            if head.startswith(b"PK\x03\x04"):
                raise InputError("is a torch zip file, not safetensors", where=where, hint="rename it to .bin")
            if length > HEADER_LIMIT:
                raise InputError(
                    f"is no safetensors file, or is damaged: announces a header of {length} bytes, the limit is {HEADER_LIMIT}",
                    where=where,
                    hint=_AGAIN,
                )
            if 8 + length > size:
                raise InputError(
                    f"is truncated: its header needs {8 + length} bytes, the file has {size}", where=where, hint=_AGAIN
                )
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=where) from error
    entries = _parse_header(header, where)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError("has header metadata that is not a map of text to text", where=where, hint=_AGAIN)
    data_start = 8 + length
    opened = _OpenFile(path)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorRef] = {}
    for name, entry in entries.items():
        spec, begin, end = _check_entry(name, entry, where)
        spans.append((begin, end, name))
        tensors[name] = _StoredTensor(spec, opened, data_start + begin)
    _check_spans(spans, size - data_start, where)
    return Shard(path, tensors, metadata)


_AGAIN = "download or copy the file again"


def _refuse_impostor(head: bytes, size: int, where: str) -> None:
    if head.startswith(b"version https://git-lfs"):
        announced = next(
            (line.split()[1] for line in head.decode("utf-8", "replace").splitlines() if line.startswith("size ")), "?"
        )
        raise InputError(
            f"is a Git LFS pointer (the real file has {announced} bytes)",
            where=where,
            hint="run `git lfs pull` in its repository, or download the file again",
        )
    # eight bytes without a zero are no header length below the limit, so a binary file is never taken for text
    if head.lstrip()[:1] == b"<" and b"\0" not in head[:8]:
        raise InputError("is a web page, not weights", where=where, hint="download it again while logged in, as a raw file")
    if size == 0:
        raise InputError("is truncated: 0 bytes", where=where, hint=_AGAIN)


def refuse_impostor_file(path: Path) -> None:
    """Refuse a file that stands in for the wanted one: Git LFS pointer, web page, empty file.

    Raises: InputError naming what the file is.
    """
    try:
        with path.open("rb") as file:
            _refuse_impostor(file.read(512), os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _parse_header(header: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise InputError(f"has a header that names {key!r} twice", where=where, hint=_AGAIN)
            seen[key] = value
        return seen

    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"has a header that is not JSON ({error})", where=where, hint=_AGAIN) from error
    if not isinstance(parsed, dict):
        raise InputError("has a header that is not a JSON object", where=where, hint=_AGAIN)
    try:
        "".join(parsed).encode()
    except UnicodeEncodeError as error:
        raise InputError("has a header with tensor names that are not text", where=where, hint=_AGAIN) from error
    return parsed  # pyright: ignore[reportUnknownVariableType]


def _check_entry(name: str, entry: Any, where: str) -> tuple[TensorSpec, int, int]:
    def whole(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    def fail(what: str) -> InputError:
        return InputError(f"tensor {name}: {what}", where=where, hint=_AGAIN)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:  # pyright: ignore[reportUnknownArgumentType]
        raise fail("its header entry must hold dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(code, str) or code not in _CODES:
        raise fail(f"unknown dtype {code!r}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(whole(axis) for axis in shape):  # pyright: ignore
        raise fail(f"shape {str(shape)[:80]} is not a list of sizes")  # pyright: ignore
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(whole(o) for o in offsets):  # pyright: ignore
        raise fail(f"data_offsets {str(offsets)[:80]} are not two byte positions")  # pyright: ignore
    begin, end = offsets  # pyright: ignore[reportUnknownVariableType]
    spec = TensorSpec(name, _CODES[code][0], tuple(shape))  # pyright: ignore[reportUnknownArgumentType]
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
                f"is truncated: tensor {name} ends at data byte {end}, the file holds {available}", where=where, hint=_AGAIN
            )
        if begin < position:
            raise InputError(f"tensors {previous} and {name} overlap in the file", where=where, hint=_AGAIN)
        if begin > position:
            raise InputError(f"has a hole of {begin - position} bytes before tensor {name}", where=where, hint=_AGAIN)
        position, previous = end, name
    if position != available:
        raise InputError(
            f"is longer than its header says: {available - position} bytes after the last tensor", where=where, hint=_AGAIN
        )


def read_scalar(ref: TensorRef) -> float:
    """The number in a tensor of one element; from safetensors without torch, so that headers can be read without it.

    Raises: InputError when the tensor has more than one element or is not of a floating point or integer type.
    """
    spec = ref.spec
    if spec.numel != 1 or spec.dtype not in (*_SCALAR_FORMATS, "bfloat16"):
        raise InputError(f"is {spec.dtype} {list(spec.shape)}, not one number", where=ref.where)
    if not isinstance(ref, _StoredTensor):
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


# --- torch pickles, reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LoadedTensor:
    spec: TensorSpec
    path: Path
    tensor: torch.Tensor

    @property
    def where(self) -> str:
        return f"{self.path}: tensor {self.spec.name}"

    def read(self) -> torch.Tensor:
        import torch

        return self.tensor.detach().clone(memory_format=torch.contiguous_format)


def open_pickle(path: Path) -> Shard:
    """Open a `.bin` or `.pt` file with torch's tensors-only unpickler, mapped into memory where its format allows it.

    Raises: InputError when the file is not a dictionary of tensors; nothing in it is ever executed.
    """
    import torch

    where = str(path)
    refuse_impostor_file(path)
    notes: tuple[str, ...] = ()
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        size = os.fstat(file.fileno()).st_size
    if not zipped:
        notes = (f"{path.name}: saved before torch 1.6; it cannot be mapped and is read whole",)
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # the unpickler raises whatever the hostile or broken stream provokes
        sentence = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights_only" in str(error) or "Unsupported" in sentence or "Weights only" in sentence:
            raise InputError(
                "this file holds Python objects, not only tensors, and is not opened",
                where=where,
                hint="convert it with a tool you trust; rmkit never runs pickled code",
            ) from error
        raise InputError(f"is not a whole torch file ({sentence[:200]})", where=where, hint=_AGAIN) from error
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"holds a {type(loaded).__name__}, not a dictionary of tensors",
            where=where,
            hint="a numbered diffusion LoRA of 2022/23 is a list of pairs; convert it with the tool that wrote it"
            if isinstance(loaded, list)
            else "",
        )
    tensors: dict[str, TensorRef] = {}
    for name, value in loaded.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"entry {str(name)[:80]!r} is a {type(value).__name__}, not a tensor",
                where=where,  # pyright: ignore
                hint="save the tensors alone, e.g. the adapter's state dict",
            )
        dtype = str(value.dtype).removeprefix("torch.")
        if value.layout != torch.strided or value.is_quantized or dtype not in ITEMSIZE:
            raise InputError(f"tensor {name}: {dtype} {value.layout} is not supported", where=where)
        if value.numel() * value.element_size() > size:
            raise InputError(f"tensor {name}: {list(value.shape)} of {dtype} is larger than the whole file", where=where)
        tensors[name] = _LoadedTensor(TensorSpec(name, dtype, tuple(value.shape)), path, value)
    return Shard(path, tensors, {}, notes)


# --- safetensors, writing ---------------------------------------------------------------------------------------------


class ShardWriter:
    """A safetensors file whose header and length are on disk before any tensor; tensors land in any order, from any thread.

    The file is whole once `close` returns; `close` refuses when a tensor is missing.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._offsets: dict[str, tuple[TensorSpec, int]] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        position = 0
        for spec in specs:
            if spec.name in self._offsets:
                raise ValueError(f"tensor {spec.name} is planned twice")
            header[spec.name] = {
                "dtype": _CODE_OF[spec.dtype],
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
        self._fd = self._guard(lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        self._guard(lambda: os.posix_fallocate(self._fd, 0, self.nbytes))
        self._write_all(memoryview(struct.pack("<Q", len(encoded)) + encoded), 0)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store a whole tensor.

        Raises: OutputError when the disk refuses; ValueError when dtype or shape are not those planned.
        """
        spec, position = self._offsets[name]
        if tuple(tensor.shape) != spec.shape or str(tensor.dtype) != f"torch.{spec.dtype}":
            raise ValueError(f"{name}: got {tensor.dtype} {tuple(tensor.shape)}, planned {spec.dtype} {spec.shape}")
        if spec.nbytes:
            self._write_all(_bytes_of(tensor.detach().cpu().contiguous()), self._data_start + position)
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


def write_pickle(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors with `torch.save`, in the order given; mapped tensors go from file to file without filling memory.

    Raises: OutputError when the disk refuses.
    """
    import torch

    try:
        with path.open("xb") as file:
            torch.save(dict(tensors), file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError.from_os(error, path) from error


def map_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file as views of the mapped file, in the order they lie there."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.offset_keys()}

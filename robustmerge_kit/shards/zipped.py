"""Torch's zip files, read without torch where they hold plain tensors: names, shapes and the place of every number.

Nothing is unpickled: the few operations `torch.save` writes for a dictionary of tensors are followed here, on texts, numbers
and tuples that are never hashed or compared. Whatever goes beyond them is left to torch's unpickler and to its refusals.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .stored import OpenFile, StoredTensor
from .tensors import ITEMSIZE, TensorRef, TensorSpec

PICKLE_LIMIT = 64 << 20
"""Bytes of the largest pickle inside a torch file; one tensor needs about 300."""

_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
_STORAGES = {
    "torch DoubleStorage": "float64",
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}


class _Beyond(Exception):
    """The file holds what only torch can judge."""


@dataclass(frozen=True)
class _Global:
    """A name of Python's that the pickle mentions."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    record: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    start: int
    shape: tuple[int, ...]


def open_plain(path: Path) -> Mapping[str, TensorRef] | None:
    """References to the tensors of a zipped torch file, in its order; None for a file that only torch can judge.

    Raises: OSError when the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = {record.filename: record for record in archive.infolist()}
            (pickle,) = (name for name in records if name.endswith("/data.pkl"))
            prefix = pickle.removesuffix("data.pkl")
            _check_records(archive, records, prefix, path.stat().st_size)
            tensors = _read_pickle(archive.read(pickle))
            file = OpenFile(path)
            places = _Places(file, records, prefix)
            return {name: places.reference(name, tensor) for name, tensor in tensors.items()}
    except (_Beyond, ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, zipfile.BadZipFile):
        return None
    except (NotImplementedError, RuntimeError, EOFError):  # zipfile's words for packed, encrypted and broken records
        return None


def _check_records(archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo], prefix: str, size: int) -> None:
    if len(records) != len(archive.infolist()) or sum(record.file_size for record in records.values()) > size:
        raise _Beyond
    if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
        raise _Beyond
    if records[f"{prefix}data.pkl"].file_size > PICKLE_LIMIT:
        raise _Beyond
    order = f"{prefix}byteorder"
    if order in records and archive.read(order) != b"little":
        raise _Beyond


class _Places:
    """Where the records of one archive lie."""

    def __init__(self, file: OpenFile, records: Mapping[str, zipfile.ZipInfo], prefix: str) -> None:
        self._file = file
        self._records = records
        self._prefix = prefix

    def reference(self, name: str, tensor: _Tensor) -> TensorRef:
        record = self._records[f"{self._prefix}data/{tensor.storage.record}"]
        spec = TensorSpec(name, tensor.storage.dtype, tensor.shape)
        skip = tensor.start * ITEMSIZE[spec.dtype]
        if skip + spec.nbytes > record.file_size:
            raise _Beyond
        return StoredTensor(spec, self._file, self._start(record) + skip)

    def _start(self, record: zipfile.ZipInfo) -> int:
        """The record's own header repeats its name and is filled up to align what follows."""
        head = bytearray(30)
        self._file.read_into(memoryview(head), record.header_offset)
        if not head.startswith(b"PK\x03\x04"):
            raise _Beyond
        name, extra = struct.unpack("<HH", head[26:30])
        return record.header_offset + 30 + name + extra


def _read_pickle(data: bytes) -> dict[str, _Tensor]:
    """The tensors of a pickled dictionary.

    Raises: _Beyond for every operation and value `torch.save` does not write for one, and whatever a broken stream provokes.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    at = 0
    while True:
        code = data[at]
        at += 1
        if code == 0x71:  # BINPUT
            memo[data[at]] = stack[-1]
            at += 1
        elif code == 0x72:  # LONG_BINPUT
            memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
            at += 4
        elif code == 0x68:  # BINGET
            stack.append(memo[data[at]])
            at += 1
        elif code == 0x6A:  # LONG_BINGET
            stack.append(memo[int.from_bytes(data[at : at + 4], "little")])
            at += 4
        elif code == 0x58:  # BINUNICODE
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            stack.append(data[at + 4 : end].decode())
            at = end
        elif code == 0x4B:  # BININT1
            stack.append(data[at])
            at += 1
        elif code == 0x4D:  # BININT2
            stack.append(int.from_bytes(data[at : at + 2], "little"))
            at += 2
        elif code == 0x4A:  # BININT
            stack.append(int.from_bytes(data[at : at + 4], "little", signed=True))
            at += 4
        elif code == 0x8A:  # LONG1
            end = at + 1 + data[at]
            stack.append(int.from_bytes(data[at + 1 : end], "little", signed=True))
            at = end
        elif code == 0x28:  # MARK
            marks.append(len(stack))
        elif code == 0x74:  # TUPLE
            mark = marks.pop()
            stack[mark:] = [tuple(stack[mark:])]
        elif 0x85 <= code <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
            count = code - 0x84
            stack[-count:] = [tuple(stack[-count:])]
        elif code == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif code in (0x88, 0x89):  # NEWTRUE, NEWFALSE
            stack.append(code == 0x88)
        elif code == 0x63:  # GLOBAL
            module, name, _ = data[at : at + 200].split(b"\n", 2)
            stack.append(_Global(f"{module.decode()} {name.decode()}"))
            at += len(module) + len(name) + 2
        elif code == 0x51:  # BINPERSID
            stack.append(_storage(stack.pop()))
        elif code == 0x52:  # REDUCE
            arguments = stack.pop()
            stack.append(_called(stack.pop(), arguments))
        elif code == 0x7D:  # EMPTY_DICT
            stack.append({})
        elif code in (0x75, 0x73):  # SETITEMS, SETITEM
            mark = marks.pop() if code == 0x75 else len(stack) - 2
            items = stack[mark:]
            del stack[mark:]
            _set(stack[-1], items)
        elif code == 0x62:  # BUILD: the versions of modules, which a model's state_dict keeps beside the tensors
            stack.pop()
        elif code == 0x80:  # PROTO
            at += 1
        elif code == 0x2E:  # STOP
            return _only_tensors(stack.pop(), stack)
        else:
            raise _Beyond


def _storage(known_as: Any) -> _Storage:
    kind, dtype, record, _, _ = known_as
    if kind != "storage" or not isinstance(dtype, _Global) or not isinstance(record, str):
        raise _Beyond
    return _Storage(_STORAGES[dtype.name], record)


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global):
        raise _Beyond
    if function.name == _ORDERED and arguments == ():
        return {}
    if function.name != _REBUILD:
        raise _Beyond
    storage, start, shape, strides, _, hooks = arguments
    if not isinstance(storage, _Storage) or not _counts((start, *shape, *strides)) or hooks != {}:
        raise _Beyond
    dense = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != dense:
            raise _Beyond
        dense *= size
    return _Tensor(storage, start, tuple(shape))


def _counts(values: tuple[Any, ...]) -> bool:
    return len(values) < 64 and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise _Beyond
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) or key in target:
            raise _Beyond
        target[key] = value


def _only_tensors(value: Any, left: list[Any]) -> dict[str, _Tensor]:
    if left or not isinstance(value, dict) or not all(isinstance(each, _Tensor) for each in value.values()):
        raise _Beyond
    return value

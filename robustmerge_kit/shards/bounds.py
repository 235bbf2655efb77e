"""Bounds on what a small pickle can make the unpickler do: it unpacks nothing, and hashes nothing that grows by sharing."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from .impostors import AGAIN
from .zipped import PICKLE_LIMIT

TUPLE_LIMIT = 1000
"""Values in one tuple with everything inside written out. Hashing one walks all of it, on the C stack."""

_LEGACY_PICKLES = 5
"""Magic number, protocol, system, the object, the keys of its storages."""

_MARK = -1
_TO_MARK = {"APPENDS", "SETITEMS", "ADDITEMS"}
_POPS = {"POP": 1, "APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = {"REDUCE", "NEWOBJ"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_SILENT = {"PROTO", "FRAME", "STOP"}
_PERSISTENT = "BINPERSID"


def check_archive(path: Path) -> None:
    """Refuse a zipped torch file whose records are packed or lie over one another, or whose pickle is a bomb.

    Raises: InputError; what is no zip file at all is left to torch.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if packed := [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]:
                raise InputError(f"has packed records ({packed[0]}), which torch does not write", where=where, hint=AGAIN)
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise InputError("has records that lie over one another", where=where, hint=AGAIN)
            for record in records:
                if record.filename.endswith(".pkl"):
                    if record.file_size > PICKLE_LIMIT:
                        raise InputError(f"has a pickle of {record.file_size} bytes", where=where, hint=AGAIN)
                    check_pickle(io.BytesIO(archive.read(record)), where)
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(f"is not a whole torch file ({error})", where=where, hint=AGAIN) from error


def check_legacy(path: Path) -> None:
    """Refuse a torch file of the time before 1.6 whose pickles are bombs.

    Raises: InputError.
    """
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            if not check_pickle(file, str(path)):
                return


def check_pickle(stream: BinaryIO, where: str) -> bool:
    """Whether one pickle in a stream is whole; what is broken or forbidden in it is the unpickler's to say.

    Raises: InputError for tuples that hold more than TUPLE_LIMIT values once what they share is written out.
    """
    stack: list[int] = []
    memo: dict[int, int] = {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if _step(opcode.name, argument, stack, memo) > TUPLE_LIMIT:
                raise InputError(f"has a tuple of more than {TUPLE_LIMIT} values in its pickle", where=where, hint=AGAIN)
    except InputError:
        raise
    except Exception:  # pickletools raises whatever the stream provokes, and so will the unpickler at the same byte
        return False
    return True


def _step(name: str, argument: object, stack: list[int], memo: dict[int, int]) -> int:
    """Take one operation; `stack` and `memo` hold how many values each tuple holds, 1 for everything else."""
    if name in _PUTS:
        memo[int(str(argument))] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in _GETS:
        stack.append(memo[int(str(argument))])
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(1 + sum(_pop_mark(stack)))
    elif name in _TUPLES:
        items = [stack.pop() for _ in range(_TUPLES[name])]
        stack.append(1 + sum(items))
    elif name in _TO_MARK:
        _pop_mark(stack)
    elif name in ("LIST", "DICT", "FROZENSET"):
        stack.append(max(_pop_mark(stack), default=1))
    elif name in _POPS:
        del stack[-_POPS[name] :]
    elif name in _CALLS:
        arguments = stack.pop()
        stack[-1] = max(1, arguments)
    elif name == "POP_MARK":
        _pop_mark(stack)
    elif name == "STACK_GLOBAL":
        del stack[-2:]
        stack.append(1)
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == _PERSISTENT:
        stack[-1] = 1
    elif name not in _SILENT:
        stack.append(1)
    return stack[-1] if stack else 0


def _pop_mark(stack: list[int]) -> list[int]:
    """Everything above the last mark, which goes too."""
    items: list[int] = []
    while (item := stack.pop()) != _MARK:
        items.append(item)
    return items

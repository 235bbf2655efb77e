"""Tensor files from strangers: nothing in them runs, and a small one costs little, whatever it declares."""

import collections
import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from robustmerge_kit.errors import InputError
from robustmerge_kit.shards import HEADER_LIMIT, open_tensors
from robustmerge_kit.shards.bounds import TUPLE_LIMIT

CPU_SECONDS = 10.0
"""Far more than any of these takes, far less than what it would take unbounded."""


class Storage:
    """Stands for a record of the archive, of `numel` floats as the pickle says."""

    def __init__(self, numel: int) -> None:
        self.numel = numel


class Stored:
    """A tensor in a pickle, with whatever geometry."""

    def __init__(self, numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.arguments = (Storage(numel), offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self) -> Any:
        return _rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", obj.numel) if isinstance(obj, Storage) else None


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def archive(data: bytes, packed: bool = False, twice: bool = False, record: bytes = b"\0" * 64) -> bytes:
    """A torch file around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, content in (("data.pkl", data), ("byteorder", b"little"), ("data/0", record), ("version", b"3\n")):
            file.writestr(f"archive/{name}", content)
        if twice:
            file.filelist.extend(file.filelist[2:3] * 50)
    return stream.getvalue()


def legacy(data: bytes) -> bytes:
    """A torch file of the time before 1.6 around a pickle."""
    head = [torch.serialization.MAGIC_NUMBER, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(each, 2) for each in head) + data + pickle.dumps([], 2)


def nested_key(levels: int) -> bytes:
    """A dictionary whose key is a tuple of itself twice, again and again: 2^levels values in a few bytes."""
    doubling = b"".join(bytes([pickle.BINPUT[0], i, pickle.BINGET[0], i]) + pickle.TUPLE2 for i in range(levels))
    return (
        pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + doubling + pickle.NONE + pickle.SETITEM + pickle.STOP
    )


def deep_key(levels: int) -> bytes:
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + pickle.TUPLE1 * levels + b"NsN."[:2] + pickle.STOP


def shared(count: int) -> bytes:
    whole = torch.zeros(100_000)
    stream = io.BytesIO()
    torch.save({f"k{i}": whole for i in range(count)}, stream)
    return stream.getvalue()


def stretched() -> bytes:
    stream = io.BytesIO()
    torch.save({"x": torch.zeros(1).expand(10**12)}, stream)
    return stream.getvalue()


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a key of 2^60 empty tuples": (lambda: archive(nested_key(60)), f"tuple of more than {TUPLE_LIMIT}"),
    "the same, before 1.6": (lambda: legacy(nested_key(60)), f"tuple of more than {TUPLE_LIMIT}"),
    "a key 200,000 tuples deep": (lambda: archive(deep_key(200_000)), f"tuple of more than {TUPLE_LIMIT}"),
    "300 MB of zeros, packed": (lambda: archive(b"\0" * (300 << 20), packed=True), "packed records"),
    "one record 50 times": (lambda: archive(pickled({}), twice=True, record=b"\0" * 9999), "lie over one another"),
    "a storage of 2^58 bytes": (
        lambda: archive(pickled({"x": Stored(2**56, (2**56,), (1,))})),
        "not a whole torch file|larger",
    ),
    "more than its storage": (lambda: archive(pickled({"x": Stored(16, (2**50,), (1,))})), "not a whole torch file|larger"),
    "a stride of zero": (lambda: archive(pickled({"x": Stored(16, (2**40, 2**10), (0, 0))})), "not a whole|larger"),
    "2^64 elements": (lambda: archive(pickled({"x": Stored(16, (2**32, 2**32), (0, 0))})), "not a whole|larger|tensor"),
    "an offset before the storage": (lambda: archive(pickled({"x": Stored(16, (4,), (1,), -8)})), "not a whole torch file"),
    "a negative size": (lambda: archive(pickled({"x": Stored(16, (-4,), (1,))})), "not a whole torch file"),
    "a terabyte by strides": (stretched, "larger than the whole file"),
    "one storage 10,000 times": (lambda: shared(10_000), "its tensors would fill 4000000000 bytes"),
    "a name for a terminal": (lambda: archive(pickled({"\x1b[31m": Stored(16, (4,), (1,))})), "control characters"),
    "an endless name": (lambda: archive(pickled({"x" * 5000: Stored(16, (4,), (1,))})), "5000 characters long"),
}


@pytest.mark.parametrize(("build", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_pickles_that_unfold_are_refused(build: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(build())
    before = time.process_time()
    with pytest.raises(InputError, match=message):
        open_tensors(path)
    assert time.process_time() - before < CPU_SECONDS


def test_tied_tensors_are_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(shared(2))
    assert len(open_tensors(path).tensors) == 2
    path.write_bytes(legacy(pickled({})))
    assert not open_tensors(path).tensors


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path, how: Callable[..., Any] = os.mkdir) -> None:
        self.mark, self.how = mark, how

    def __reduce__(self) -> Any:
        return self.how, (str(self.mark),)


@pytest.mark.parametrize("wrap", [archive, legacy])
@pytest.mark.parametrize("how", [os.mkdir, os.system, eval, exec, __import__, open])
def test_code_in_pickles_does_not_run(wrap: Callable[[bytes], bytes], how: Callable[..., Any], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "adapter_model.bin"
    for value in ({"x": Attack(mark, how)}, [Attack(mark, how)], {"x": {"y": [Attack(mark, how)]}}):
        path.write_bytes(wrap(pickle.dumps(value, 2)))
        with pytest.raises(InputError, match=r"Python objects|not a dictionary|not a whole"):
            open_tensors(path)
    assert not mark.exists()


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a length of 2^63": (lambda: struct.pack("<Q", 2**63) + b"{}", "announces a header"),
    "the longest, all spaces": (lambda: header(b" " * HEADER_LIMIT), "not JSON"),
    "a million brackets": (lambda: header(b"[" * 1_000_000), "not JSON"),
    "two million values": (lambda: header(b'{"a":[' + b"[]," * 2_000_000 + b"1]}"), "must hold dtype"),
    "a number of 10^6 digits": (lambda: header(b'{"a":' + b"9" * 1_000_000 + b"}"), "not JSON"),
    "a name of 10^6 letters": (lambda: header(json.dumps({"x" * 10**6: ONE}).encode(), b"\0" * 8), "1000000 characters long"),
    "a name that turns around": (lambda: header(json.dumps({"a\u202eb": ONE}).encode(), b"\0" * 8), "control characters"),
    "a name for a terminal": (lambda: header(json.dumps({"\x1b]0;x\x07": ONE}).encode(), b"\0" * 8), "control characters"),
    "a name with a line break": (lambda: header(json.dumps({"a\nb": ONE}).encode(), b"\0" * 8), "control characters"),
    "no name": (lambda: header(json.dumps({"": ONE}).encode(), b"\0" * 8), "empty"),
    "2^60 elements": (lambda: header(json.dumps({"x": {**ONE, "shape": [2**30, 2**30]}}).encode(), b"\0" * 8), "needs"),
    "a pointer without a size": (lambda: b"version https://git-lfs.github.com/spec/v1\nsize \n", "pointer"),
}


@pytest.mark.parametrize(("build", "message"), HEADERS.values(), ids=HEADERS.keys())
def test_headers_that_promise_much_cost_little(build: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(build())
    before = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        open_tensors(path)
    assert time.process_time() - before < CPU_SECONDS
    assert len(str(caught.value)) < 5000

"""Hostile, broken and foreign tensor files: each is refused with its own sentence, and nothing in them runs."""

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustmerge_kit.errors import InputError
from robustmerge_kit.shards import HEADER_LIMIT, open_safetensors, open_tensors, read_scalar

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def stored(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: object) -> bytes:
    return stored({"x": {**F32, **changes}})


BROKEN = {
    "nothing": (b"", "is truncated: 0 bytes"),
    "two bytes": (b"\r\n", "is truncated: 2 bytes"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 77\n",
        r"Git LFS pointer \(the real file has 77 bytes",
    ),
    "web page": (b"<!DOCTYPE html><html>", "is a web page"),
    "web page, indented": (b"\n  <html>sign in</html>", "is a web page"),
    "header over the limit": (struct.pack("<Q", HEADER_LIMIT + 1) + b"{}", "announces a header of"),
    "header over the file": (struct.pack("<Q", 900) + b"{}", "its header needs 908 bytes, the file has 10"),
    "header of 2^64-1": (b"\xff" * 8 + b"{}", "announces a header of 18446744073709551615 bytes"),
    "not JSON": (stored(b"{nonsense}"), "not JSON"),
    "not UTF-8": (stored(b'{"\xff": 1}'), "not JSON"),
    "deep JSON": (stored(b"[" * 200_000), "not JSON"),
    "long number": (stored(b'{"x": ' + b"9" * 6000 + b"}"), "not JSON"),
    "a list": (stored([]), "not a JSON object"),
    "a name twice": (stored(b'{"x": {}, "x": {}}'), "names 'x' twice"),
    "half a surrogate": (stored(b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'), "control characters"),
    "metadata of numbers": (stored({"__metadata__": {"a": 1}}, b""), "not a map of text"),
    "entry without shape": (stored({"x": {"dtype": "F32", "data_offsets": [0, 8]}}), "must hold dtype, shape"),
    "entry of text": (stored({"x": "F32"}), "must hold dtype, shape"),
    "unknown dtype": (entry(dtype="F7"), "unknown dtype 'F7'"),
    "dtype a list": (entry(dtype=["F32"]), "unknown dtype"),
    "negative axis": (entry(shape=[-2]), "is not a list of sizes"),
    "axis true": (entry(shape=[True]), "is not a list of sizes"),
    "axis 2.0": (entry(shape=[2.0]), "is not a list of sizes"),
    "17 axes": (entry(shape=[1] * 17), "is not a list of sizes"),
    "product beyond 2^64": (entry(shape=[2**62, 2**62]), "data_offsets 0..8 hold 8"),
    "three offsets": (entry(data_offsets=[0, 4, 8]), "not two byte positions"),
    "negative offset": (entry(data_offsets=[-8, 0]), "not two byte positions"),
    "shape against offsets": (entry(shape=[3]), "needs 12 bytes"),
    "end before begin": (entry(shape=[0], data_offsets=[8, 0]), "needs 0 bytes"),
    "out of range": (stored({"x": {**F32, "data_offsets": [0, 8]}}, b"\0" * 4), "ends at data byte 8, the file holds 4"),
    "overlap": (stored({"x": F32, "y": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12), "x and y overlap"),
    "the same bytes twice": (stored({"x": F32, "y": F32}), "overlap"),
    "hole": (stored({"x": F32, "y": {**F32, "data_offsets": [12, 20]}}, b"\0" * 20), "hole of 4 bytes before tensor y"),
    "bytes left over": (stored({"x": F32}, b"\0" * 9), "longer than its header says: 1 bytes"),
    "a zip": (b"PK\x03\x04" + b"\0" * 90, "is a torch zip file"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_safetensors_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_safetensors(path)
    assert caught.value.where.startswith(str(path))


@pytest.mark.parametrize("padding", [0x13C, 0x3C20, 0x3C0A, 0x3C3C])
def test_header_lengths_that_spell_a_web_page_are_lengths(tmp_path: Path, padding: int) -> None:
    text = json.dumps({"x": F32}).encode().ljust(padding)
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1, 2))
    assert len(text) == padding
    assert open_safetensors(path).tensors["x"].read().tolist() == [1, 2]


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn],
)
def test_what_safetensors_writes_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.arange(6).reshape(2, 3).to(dtype),
        "b": torch.zeros(0, 3, dtype=dtype),
        "c": torch.ones((), dtype=dtype),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt", "who": "me"})
    shard = open_tensors(tmp_path / "x.safetensors")
    assert shard.metadata == {"format": "pt", "who": "me"}
    for name, tensor in tensors.items():
        got = shard.tensors[name].read()
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert got.view(torch.uint8).equal(tensor.view(torch.uint8)) if got.numel() and got.ndim else True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32])
@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_scalars_are_read(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    tensors = {"alpha": torch.tensor(4, dtype=dtype), "many": torch.ones(2)}
    (save_file if name.endswith("s") else torch.save)(tensors, tmp_path / name)
    shard = open_tensors(tmp_path / name)
    assert read_scalar(shard.tensors["alpha"]) == 4
    with pytest.raises(InputError, match="not one number"):
        read_scalar(shard.tensors["many"])


def test_a_file_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    shard = open_tensors(path)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(InputError, match="100 bytes too early"):
        shard.tensors["a"].read()


def test_safetensors_under_another_suffix(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.bin")
    assert open_tensors(tmp_path / "adapter_model.bin").tensors["a"].read().tolist() == [1, 1]


class Trap:
    """Touches a file when it is unpickled the unsafe way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_never_run(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "adapter_model.bin"
    torch.save({"x": torch.ones(2), "y": Trap(tmp_path / "sprung")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="holds Python objects") as caught:
        open_tensors(path)
    assert "convert it with a tool you trust" in caught.value.hint
    assert not (tmp_path / "sprung").exists()


def test_a_bare_pickle_never_runs(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "adapter_model.bin"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError):
        open_tensors(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_read_and_the_old_form_is_remarked(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "adapter_model.bin"
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base.to(torch.bfloat16), "b": base.T, "c": base[1:]}, path, _use_new_zipfile_serialization=zipped)
    shard = open_tensors(path)
    assert bool(shard.notes) is not zipped
    assert shard.tensors["a"].spec.dtype == "bfloat16"
    assert shard.tensors["b"].read().equal(base.T)
    assert shard.tensors["b"].read().is_contiguous()
    assert shard.tensors["c"].read().equal(base[1:])


def test_tensors_saved_on_a_gpu_are_read_without_one(tmp_path: Path) -> None:
    """The device is a word in the pickle: written as `cpu`, changed to `cuda:0` with its length."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    path = tmp_path / "adapter_model.bin"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            target.writestr(item.filename, data)
    assert open_tensors(path).tensors["a"].read().tolist() == [1, 1, 1]


def legacy(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


NOT_TENSORS = {
    "pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 307151\n", "Git LFS pointer"),
    "web page": (lambda: b"<html>", "is a web page"),
    "empty": (lambda: b"", "0 bytes"),
    "cut zip": (lambda: legacy({"a": torch.ones(1000)})[:-200], "not a whole torch file"),
    "noise": (lambda: b"\x01\x02\x03 nothing of that kind", "."),
    "list": (lambda: legacy([torch.ones(2), torch.ones(2)]), "holds a list"),
    "tensor": (lambda: legacy(torch.ones(2)), "holds a Tensor"),
    "nested": (lambda: legacy({"model": {"a": torch.ones(2)}}), "entry 'model' is a dict"),
    "number keys": (lambda: legacy({1: torch.ones(2)}), "entry '1'"),
    "sparse": (lambda: legacy({"a": torch.ones(2, 2).to_sparse()}), "not supported"),
    "expanded": (lambda: legacy({"a": torch.ones(1).expand(10**12)}), "larger than the whole file"),
}


@pytest.mark.parametrize(("make", "message"), NOT_TENSORS.values(), ids=NOT_TENSORS.keys())
def test_pickles_that_are_not_tensors_by_name(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(make())  # pyright: ignore
    with pytest.raises(InputError, match=message):
        open_tensors(path)

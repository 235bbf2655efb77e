"""Torch's zip files read without torch: the same tensors as torch reads, or nothing."""

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from robustmerge_kit.shards import open_tensors
from robustmerge_kit.shards.zipped import open_plain

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def state_dict() -> dict[str, Any]:
    """A model's: an OrderedDict with the versions of its modules beside the tensors."""
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()


def views() -> dict[str, torch.Tensor]:
    whole = torch.arange(60.0).view(10, 6)
    return {"whole": whole, "rows": whole[2:5], "again": whole, "flat": whole.view(-1)[7:9], "one column": whole[:1, :1]}


PLAIN: dict[str, Any] = {
    "every dtype": {str(dtype): torch.ones(2, 3).to(dtype) for dtype in DTYPES},
    "shapes": {str(n): torch.randn((2,) * n) for n in range(6)},
    "empty": {"none": torch.empty(0, 4), "x": torch.ones(1)},
    "many": {f"layers.{i}.lora_A.weight": torch.full((i % 3 + 1, 300), float(i)) for i in range(2500)},
    "state_dict": state_dict(),
    "views of one storage": views(),
    "names in other scripts": {"ключ.ß.鍵": torch.ones(3)},
    "no tensors": {},
    "grad": {"x": torch.ones(2, requires_grad=True)},
}


@pytest.mark.parametrize("case", PLAIN)
def test_the_tensors_are_those_torch_reads(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.bin"
    torch.save(PLAIN[case], path)
    found = open_plain(path)
    assert found is not None
    expected: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        read = found[name].read()
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read, tensor)
        assert torch.equal(found[name].read_flat(0, tensor.numel()), tensor.reshape(-1))


class Anything:
    pass


BEYOND: dict[str, Any] = {
    "a transposed tensor": {"x": torch.randn(3, 4).T},
    "an expanded tensor": {"x": torch.ones(1).expand(5)},
    "a parameter": {"x": torch.nn.Parameter(torch.ones(2))},
    "a number": {"x": torch.ones(2), "step": 3},
    "nested": {"model": {"x": torch.ones(2)}},
    "a list": [torch.ones(2)],
    "one tensor": torch.ones(2),
    "a sparse tensor": {"x": torch.eye(3).to_sparse()},
    "a complex tensor": {"x": torch.ones(2, dtype=torch.complex64)},
    "numbers as names": {1: torch.ones(2)},
    "a counter": collections.Counter({"x": 2}),
    "an object": {"x": Anything()},
}


@pytest.mark.parametrize("case", BEYOND)
@pytest.mark.filterwarnings("ignore")
def test_the_rest_is_left_to_torch(tmp_path: Path, case: str) -> None:
    torch.save(BEYOND[case], tmp_path / "x.bin")
    assert open_plain(tmp_path / "x.bin") is None


def rewritten(path: Path, **changes: Any) -> Path:
    """The archive at `path` with some records replaced; None leaves one out."""
    other = path.with_name("changed.bin")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for record in old.infolist():
            name = record.filename.partition("/")[2]
            content = changes.get(name.replace("/", "_").replace(".", "_"), old.read(record))
            if content is not None:
                new.writestr(record.filename, content)
    return other


def damaged(path: Path, case: str) -> Path:
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        data = archive.read(name)
    if case == "packed":
        other = path.with_name("changed.bin")
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
            for record in old.infolist():
                new.writestr(record.filename, old.read(record))
        return other
    changes: dict[str, Any] = {
        "a record is missing": {"data_0": None},
        "a record is short": {"data_0": b"1234"},
        "the other byte order": {"byteorder": b"big"},
        "a pickle that ends early": {"data_pkl": data[: len(data) // 2]},
        "an empty pickle": {"data_pkl": b""},
        "a call of a function": {"data_pkl": pickle.dumps(print, 2)},
        "a negative size": {"data_pkl": data.replace(b"K\x05\x85", b"J\xff\xff\xff\xff\x85", 1)},
        "a storage larger than its record": {"data_pkl": data.replace(b"K\x05\x85", b"M\xff\xff\x85", 1)},
    }[case]
    return rewritten(path, **changes)


@pytest.mark.parametrize(
    "case",
    [
        "packed",
        "a record is missing",
        "a record is short",
        "the other byte order",
        "a pickle that ends early",
        "an empty pickle",
        "a call of a function",
        "a negative size",
        "a storage larger than its record",
    ],
)
def test_damage_is_left_to_torch(tmp_path: Path, case: str) -> None:
    torch.save({"x": torch.ones(5)}, tmp_path / "x.bin")
    assert open_plain(tmp_path / "x.bin") is not None
    assert open_plain(damaged(tmp_path / "x.bin", case)) is None


def test_any_changed_byte_of_the_pickle_is_refused_or_read_within_the_file(tmp_path: Path) -> None:
    torch.save({"a.b": torch.arange(5.0), "c": torch.ones(2, 3)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        data = archive.read(name)
    generator = torch.Generator().manual_seed(0)
    read = 0
    for _ in range(1500):
        at, value = int(torch.randint(len(data), (), generator=generator)), int(torch.randint(256, (), generator=generator))
        other = rewritten(tmp_path / "x.bin", data_pkl=data[:at] + bytes([value]) + data[at + 1 :])
        found = open_plain(other)
        for ref in (found or {}).values():
            ref.read()
            read += 1
    assert 100 < read < 3000


def test_shared_tuples_cost_nothing(tmp_path: Path) -> None:
    """A tuple of a tuple of a tuple, each twice: walking it would take 2^60 steps."""
    bomb = io.BytesIO()
    bomb.write(b"\x80\x02}K\x01q\x00")
    for depth in range(60):
        bomb.write(bytes([0x68, depth, 0x68, depth, 0x86, 0x71, depth + 1]))
    bomb.write(b"K\x01s.")
    torch.save({"x": torch.ones(5)}, tmp_path / "x.bin")
    assert open_plain(rewritten(tmp_path / "x.bin", data_pkl=bomb.getvalue())) is None


def test_what_was_opened_is_remembered_while_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustmerge_kit.digests.SETTLED", -1.0)
    path = tmp_path / "x.bin"
    torch.save({"x": torch.ones(2)}, path)
    first = open_tensors(path)
    assert open_tensors(path) is first
    torch.save({"y": torch.ones(3)}, path)
    assert list(open_tensors(path).tensors) == ["y"]


def test_what_has_only_just_changed_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustmerge_kit.digests.SETTLED", 1000.0)
    torch.save({"x": torch.ones(2)}, tmp_path / "x.bin")
    assert open_tensors(tmp_path / "x.bin") is not open_tensors(tmp_path / "x.bin")

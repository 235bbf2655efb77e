"""Many tensors read at once are the tensors read one by one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustmerge_kit.errors import InputError
from robustmerge_kit.shards import open_tensors, read_together


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    alike = {f"same{i}": torch.randn(4, 6, generator=draw).bfloat16() for i in range(3)}
    return {
        **alike,
        "flat": torch.randn(24, generator=draw).bfloat16(),
        "half": torch.randn(4, 6, generator=draw).half(),
        "empty": torch.empty(0, 6),
        "empty2": torch.empty(0, 6),
        "whole": torch.arange(24).reshape(4, 6),
        "number": torch.tensor(2.5),
        "number2": torch.tensor(-1.0),
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_everything_comes_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    given = tensors()
    path = tmp_path / f"tensors{suffix}"
    save_file(given, path) if suffix == ".safetensors" else torch.save(given, path)
    shard = open_tensors(path)
    names = [*reversed(given), "same1"]
    read = read_together([shard.tensors[name] for name in names])
    for name, tensor in zip(names, read, strict=True):
        assert tensor.dtype == given[name].dtype
        assert tensor.shape == given[name].shape
        assert torch.equal(tensor, given[name])
        assert tensor.is_contiguous()
    assert read_together([]) == []


def test_writing_to_one_changes_no_other(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x.safetensors")
    shard = open_tensors(tmp_path / "x.safetensors")
    first, second, again = read_together([shard.tensors[name] for name in ("same0", "same1", "same0")])
    first.zero_()
    assert torch.equal(second, tensors()["same1"])
    assert torch.equal(again, tensors()["same0"])


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path)
    shard = open_tensors(path)
    refs = [shard.tensors[f"same{i}"] for i in range(3)]
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match=r"x\.safetensors.*changed after it was opened"):
        read_together(refs)

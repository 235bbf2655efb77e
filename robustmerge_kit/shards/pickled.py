"""Torch's pickle files: tensors only, nothing in them is ever executed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, OutputError
from .bounds import check_archive, check_legacy
from .impostors import AGAIN, refuse_impostor_file
from .tensors import ITEMSIZE, Shard, TensorRef, TensorSpec, check_names
from .zipped import open_plain

if TYPE_CHECKING:
    import torch

MOST_SHARING = 4
"""How many times its own size the tensors of a pickle may fill: tied weights share what is stored once."""


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

    def read_flat(self, start: int, stop: int, into: torch.Tensor | None = None) -> torch.Tensor:
        if self.tensor.is_contiguous():
            return self.tensor.detach().view(-1)[start:stop].clone()
        return self.read().view(-1)[start:stop]


def open_pickle(path: Path) -> Shard:
    """Open a `.bin` or `.pt` file: without torch where that can be, else by its tensors-only unpickler, mapped into memory.

    Raises: InputError when the file is not a dictionary of tensors; nothing in it is ever executed.
    """
    where = str(path)
    refuse_impostor_file(path)
    notes: tuple[str, ...] = ()
    with path.open("rb") as file:
        start = file.read(4)
        zipped = start == b"PK\x03\x04"
        size = os.fstat(file.fileno()).st_size
    if not zipped and not start.startswith(b"\x80"):
        raise InputError(
            "is neither safetensors nor a torch file", where=where, hint="give the adapter's folder or its weights"
        )
    if zipped:
        plain = open_plain(path)
        if plain is not None:
            return _checked(Shard(path, plain), size)
        check_archive(path)
    else:
        check_legacy(path)
        notes = (f"{path.name}: saved before torch 1.6; it cannot be mapped and is read whole",)
    import torch

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
        raise InputError(f"is not a whole torch file ({sentence[:200]})", where=where, hint=AGAIN) from error
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
    return _checked(Shard(path, tensors, {}, notes), size)


def _checked(shard: Shard, size: int) -> Shard:
    """A shard whose names are sound and whose tensors do not share the file's bytes without end."""
    where = str(shard.path)
    check_names(shard.tensors.keys(), where)
    total = sum(ref.spec.nbytes for ref in shard.tensors.values())
    if total > MOST_SHARING * size:
        raise InputError(f"its tensors would fill {total} bytes, the whole file has {size}", where=where)
    return shard


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

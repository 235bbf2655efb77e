"""Many tensors read at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .stored import StoredTensor
from .tensors import TensorRef, TensorSpec

if TYPE_CHECKING:
    import torch


def read_together(refs: Sequence[TensorRef]) -> list[torch.Tensor]:
    """The tensors in CPU memory; those of one dtype and shape lie side by side in memory of their own.

    Every tensor that is made, viewed and freed hands the interpreter to another thread and back; here most of them are made
    by one call.

    Raises: InputError when a file has changed or cannot be read.
    """
    alike: dict[object, list[int]] = defaultdict(list)
    for i, ref in enumerate(refs):
        alike[(ref.spec.dtype, ref.spec.shape) if isinstance(ref, StoredTensor) and ref.spec.numel else i].append(i)
    found: dict[int, torch.Tensor] = {}
    for places in alike.values():
        stored = [ref for ref in (refs[i] for i in places) if isinstance(ref, StoredTensor)]
        if len(stored) > 1:
            found |= zip(places, _read_alike(stored, stored[0].spec), strict=True)
        else:
            found |= {i: refs[i].read() for i in places}
    return [found[i] for i in range(len(refs))]


def _read_alike(refs: Sequence[StoredTensor], spec: TensorSpec) -> Sequence[torch.Tensor]:
    import numpy
    import torch

    buffer = numpy.empty((len(refs), spec.nbytes), numpy.uint8)
    for ref, row in zip(refs, buffer, strict=True):
        ref.read_into(row.data, 0)
    return torch.frombuffer(buffer, dtype=getattr(torch, spec.dtype)).view(len(refs), *spec.shape).unbind()

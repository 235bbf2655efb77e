"""Tensor files: lazy references to stored tensors, and a writer that knows every offset before the first byte.

Only this module knows how tensors lie in files. A `TensorRef` is a promise: name, dtype, shape and place are known from the
header, bytes are read when `read` is called. Reading needs no torch until then, so that validating a recipe stays cheap.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ..digests import settled_state
from .clone import ShardClone, copy_file
from .impostors import refuse_impostor_file
from .pickled import open_pickle, write_pickle
from .stored import HEADER_LIMIT, is_safetensors, map_safetensors, open_safetensors, read_scalar, will_read
from .tensors import ITEMSIZE, Shard, TensorRef, TensorSpec, bytes_of
from .together import read_together
from .writer import ShardWriter

OPENED = 256
"""Files whose headers one process remembers: many recipes over the same adapters and base read each once."""

__all__ = [
    "HEADER_LIMIT",
    "ITEMSIZE",
    "Shard",
    "ShardClone",
    "ShardWriter",
    "TensorRef",
    "TensorSpec",
    "bytes_of",
    "copy_file",
    "map_safetensors",
    "open_pickle",
    "open_safetensors",
    "open_tensors",
    "read_scalar",
    "read_together",
    "refuse_impostor_file",
    "will_read",
    "write_pickle",
]


def open_tensors(path: Path) -> Shard:
    """Open a tensor file by its content: safetensors, else torch's pickle formats (tensors only, nothing is executed).

    The headers of the last OPENED files are remembered while the files stay the same.

    Raises: InputError for everything that is not a whole, well-formed tensor file.
    """
    state = settled_state(path)
    return _open(path) if state is None else _remembered(path, *state)


@lru_cache(maxsize=OPENED)
def _remembered(path: Path, *state: int) -> Shard:
    return _open(path)


def _open(path: Path) -> Shard:
    if path.suffix == ".safetensors" or is_safetensors(path):
        return open_safetensors(path)
    return open_pickle(path)

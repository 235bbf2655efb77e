"""Tensor files: lazy references to stored tensors, and a writer that knows every offset before the first byte.

Only this module knows how tensors lie in files. A `TensorRef` is a promise: name, dtype, shape and place are known from the
header, bytes are read when `read` is called. Reading needs no torch until then, so that validating a recipe stays cheap.
"""

from __future__ import annotations

from pathlib import Path

from .clone import ShardClone, copy_file
from .impostors import refuse_impostor_file
from .pickled import open_pickle, surely_holds, write_pickle
from .stored import HEADER_LIMIT, is_safetensors, map_safetensors, open_safetensors, read_scalar, will_read
from .tensors import ITEMSIZE, Shard, TensorRef, TensorSpec, bytes_of
from .writer import ShardWriter

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
    "refuse_impostor_file",
    "surely_holds",
    "will_read",
    "write_pickle",
]


def open_tensors(path: Path) -> Shard:
    """Open a tensor file by its content: safetensors, else torch's pickle formats (tensors only, nothing is executed).

    Raises: InputError for everything that is not a whole, well-formed tensor file.
    """
    if path.suffix == ".safetensors" or is_safetensors(path):
        return open_safetensors(path)
    return open_pickle(path)

"""Loops in C over the entries of one factor, where the package was built with them; torch does the same in several passes.

Every function takes contiguous CPU tensors of one of `dtypes()` and lets other threads run meanwhile. Whoever calls asks
`fits` first and has another way. Sums are taken in a fixed order and in double precision between blocks.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_NOT_FINITE, _NOT_ZERO = 1, 2


class _Values(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("n", ctypes.c_int64), ("dtype", ctypes.c_int32), ("found", ctypes.c_int32))


class _Pruning(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "scale", "out", "full", "rest")),
        *((name, ctypes.c_int64) for name in ("rows", "cols", "k", "stride")),
        ("dtype", ctypes.c_int32),
    )


@cache
def dtypes() -> dict[torch.dtype, int]:
    """The dtypes the kernels read, and what they call them."""
    return {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def available() -> bool:
    """Whether the kernels were built and can be loaded; the environment variable RMKIT_NATIVE=0 forbids them."""
    return _library() is not None


def fits(x: torch.Tensor) -> bool:
    """Whether the kernels can read this tensor."""
    return x.dtype in dtypes() and x.device.type == "cpu" and x.is_contiguous() and available()


def scan(tensors: Sequence[torch.Tensor]) -> list[tuple[bool, bool]]:
    """Of each tensor: (all values are finite, all values are zero)."""
    if not tensors:
        return []
    codes = dtypes()
    each = (_Values * len(tensors))(*[(x.data_ptr(), x.numel(), codes[x.dtype], 0) for x in tensors])
    _loaded().rmkit_scan(each, len(tensors))
    return [(not one.found & _NOT_FINITE, not one.found & _NOT_ZERO) for one in each]


def prune(
    factors: Sequence[torch.Tensor],
    k: Sequence[int],
    outs: Sequence[torch.Tensor],
    scales: NDArray[numpy.float32] | None = None,
    sums: NDArray[numpy.float64] | None = None,
) -> None:
    """Add to each output what is left of a factor without the entries below its k-th smallest magnitude, all for k = 0.

    The values must be finite. scales: multiply the columns. sums: have the sums of magnitudes along every row added, before
    and after.

    Shapes: factors (rows, cols) each; outs (rows, cols) float32 each, views whose rows are contiguous; of n factors scales
    (n, most cols), and sums (2, n, most rows), both contiguous.
    """
    codes, jobs = dtypes(), (_Pruning * len(factors))()
    scale = 0 if scales is None else scales.ctypes.data
    full = 0 if sums is None else sums.ctypes.data
    rest = 0 if sums is None else full + sums.strides[0]
    for t, (job, x, out) in enumerate(zip(jobs, factors, outs, strict=True)):
        job.x, job.out, job.k, job.dtype = x.data_ptr(), out.data_ptr(), k[t], codes[x.dtype]
        job.rows, job.cols = x.shape
        job.stride = out.stride(0)
        if scales is not None:
            job.scale = scale + t * scales.strides[0]
        if sums is not None:
            job.full, job.rest = full + t * sums.strides[1], rest + t * sums.strides[1]
    if _loaded().rmkit_prune(jobs, len(jobs)):
        raise MemoryError


def count(x: torch.Tensor, signed: bool, level: int, prefix: int, counts: torch.Tensor) -> None:
    """Add to `counts` how often each 16-bit digit occurs in the patterns of `select.ordered_pattern`.

    signed: False leaves the signs out. level: 0 counts the upper digits, from -32768 on; 1 the lower ones of patterns whose
    upper digit is `prefix`.

    Shapes: x float32, counts (65536,) int64.
    """
    _loaded().rmkit_count(x.data_ptr(), x.numel(), signed, level, prefix, counts.data_ptr())


def trim(x: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """The entries of every lane whose magnitude is at least its bound, else 0.

    Shapes: x (n, ...) float32, bounds (n,) float32 -> that of x.
    """
    out = torch.empty_like(x)
    _loaded().rmkit_trim(x.data_ptr(), x.shape[0], x[0].numel(), bounds.data_ptr(), out.data_ptr())
    return out


def elect(x: torch.Tensor, sizes: torch.Tensor | None) -> torch.Tensor:
    """Entry by entry the sum of the lanes whose sign is that of the sum of all, + where it is 0.

    sizes: divide by the sum of those of the lanes added, 1 where it is 0.

    Shapes: x (n, ...) float32, sizes (n,) float32 -> (...).
    """
    out = torch.empty_like(x[0])
    mass = None if sizes is None else sizes.data_ptr()
    if _loaded().rmkit_elect(x.data_ptr(), x.shape[0], out.numel(), mass, out.data_ptr()):
        raise MemoryError
    return out


def round_into(x: torch.Tensor, out: torch.Tensor) -> float:
    """Round x to the dtype of `out`, bfloat16 or float16; the squared norm of what that changes, infinite or NaN on overflow.

    Shapes: x float32 and out contiguous, of one size.
    """
    return _loaded().rmkit_round(x.data_ptr(), dtypes()[out.dtype], x.numel(), out.data_ptr())


def losses(x: torch.Tensor, rounded: torch.Tensor) -> NDArray[numpy.float64]:
    """Of every row: the squared norm of x, that of x - rounded, and the inner product of the two.

    Shapes: x (rows, cols) float32, rounded likewise in one of `dtypes()` -> (rows, 3).
    """
    import numpy

    sums = numpy.empty((x.shape[0], 3))
    _loaded().rmkit_losses(x.data_ptr(), rounded.data_ptr(), dtypes()[rounded.dtype], *x.shape, sums.ctypes.data)
    return sums


def _loaded() -> ctypes.CDLL:
    library = _library()
    assert library is not None
    return library


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("RMKIT_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name("kernels.so")))
    except OSError:
        return None
    pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.rmkit_scan.argtypes, library.rmkit_scan.restype = [pointer, size], None
    library.rmkit_round.argtypes, library.rmkit_round.restype = [pointer, flag, size, pointer], ctypes.c_double
    library.rmkit_count.argtypes, library.rmkit_count.restype = [pointer, size, flag, flag, ctypes.c_int32, pointer], None
    library.rmkit_trim.argtypes, library.rmkit_trim.restype = [pointer, size, size, pointer, pointer], None
    library.rmkit_elect.argtypes = [pointer, size, size, pointer, pointer]
    library.rmkit_losses.argtypes, library.rmkit_losses.restype = [pointer, pointer, flag, size, size, pointer], None
    library.rmkit_prune.argtypes = [pointer, size]
    return library

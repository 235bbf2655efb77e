"""Where a merge runs and how much memory it may take; none of it changes the numbers."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from dataclasses import dataclass

from .errors import UsageError

DEFAULT_MEMORY = 512_000_000
"""Bytes in flight when nobody says otherwise."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True)
class Resources:
    """Where and how fast, which never changes the numbers (on one type of device).

    memory: bytes in flight on the host. gpu_memory: bytes a batch may take there, None: 80 % of what is free.
    batch: sites per launch, None: one on CPU, as many as fit on a GPU. others: further devices of the same type, which the
    workers of a fold share among themselves; adapters are merged on `device` alone.
    """

    device: str = "cpu"
    workers: int = 1
    memory: int = DEFAULT_MEMORY
    gpu_memory: int | None = None
    batch: int | None = None
    others: tuple[str, ...] = ()


def available_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tune_process() -> None:
    """Settings of this process that suit merging; for programs that do little else.

    glibc is told to reuse freed buffers: giving each of thousands back to the kernel and faulting it in again costs as much
    as the arithmetic. Threads that run short kernels hand the interpreter over more often, or they would starve each other.
    What was imported is taken out of garbage collection.
    """
    gc.freeze()
    gc.enable()
    sys.setswitchinterval(0.0005)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 256 << 20), (_M_TOP_PAD, 16 << 20)):
            libc.mallopt(option, value)


def pick_devices(wanted: str) -> tuple[str, ...]:
    """The devices to merge on: one, or several GPUs given as `cuda:0,cuda:2` or `cuda:all`.

    Raises: UsageError for a device that is unknown or absent, or named twice.
    """
    if wanted == "cuda:all":
        import torch

        count = torch.cuda.device_count()
        return tuple(pick_device(f"cuda:{index}") for index in range(max(1, count)))
    devices = tuple(pick_device(one.strip()) for one in wanted.split(","))
    if len(set(devices)) < len(devices) or (len(devices) > 1 and not all(one.startswith("cuda:") for one in devices)):
        raise UsageError(f"--device {wanted}: several devices must be different GPUs", hint="write e.g. cuda:0,cuda:1")
    return devices


def pick_device(wanted: str) -> str:
    """The device to merge on: `auto` takes a GPU where there is one.

    Raises: UsageError for a device that is unknown or absent.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"--device {wanted}: no such device", hint="auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {wanted}: not supported", hint="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {wanted}: this machine has {torch.cuda.device_count()} CUDA devices", hint="use --device cpu"
        )
    return wanted

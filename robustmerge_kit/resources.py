"""Where a merge runs and how much memory it may take; none of it changes the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True)
class Resources:
    """Where and how fast, which never changes the numbers (on one type of device).

    memory: bytes in flight on the host. gpu_memory: bytes a batch may take there, None: 80 % of what is free.
    batch: sites per launch, None: one on CPU, as many as fit on a GPU.
    """

    device: str = "cpu"
    workers: int = 1
    memory: int = 512 << 20
    gpu_memory: int | None = None
    batch: int | None = None


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

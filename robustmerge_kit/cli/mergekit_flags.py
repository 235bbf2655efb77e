"""mergekit's flags on `rmkit run`: the same spelling where the meaning exists, a sentence where it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

NOT_NEEDED = {
    "read_to_gpu": "tensors go to the device they are merged on",
    "low_cpu_memory": "memory is bounded by --memory",
    "gpu_rich": "tensors go to the device they are merged on",
    "async_write": "reading, merging and writing always overlap",
    "write_threads": "one writer keeps up with the disk",
    "lazy_unpickle": "inputs are always read lazily",
    "safe_serialization": "safetensors is what is written",
    "trust_remote_code": "no code of a model is ever run",
    "clone_tensors": "tensors are never shared",
    "lora_merge_cache": "adapters are merged without baking them into the base",
    "lora_merge_dtype": "arithmetic is float32 with one rounding at the end",
    "multi_gpu": "--device cuda:all shares a model among all GPUs",
}

REFUSED = {
    "allow_crimes": ("what it allowed has its own words here", "see `missing:` and `allow:` in the recipe"),
    "no_safe_serialization": ("pickled weights are not written", "set output.weights: bin if a loader needs a .bin adapter"),
    "unsafe_truncate_embeddings": ("vocabularies are never truncated", "resize the base first"),
}


def mergekit_flags(command: Command) -> Command:
    """Add mergekit's flags to a command; they reach it as one mapping `mergekit`."""

    def flag(*names: str) -> Callable[[Command], Command]:
        return click.option(*names, is_flag=True, default=None, hidden=True)

    options = [
        *(flag(f"--{name.replace('_', '-')}") for name in ("read_to_gpu", "low_cpu_memory", "gpu_rich", "trust_remote_code")),
        *(flag(f"--{name.replace('_', '-')}") for name in ("multi_gpu", "allow_crimes", "unsafe_truncate_embeddings")),
        flag("--async-write/--no-async-write"),
        flag("--lazy-unpickle/--no-lazy-unpickle"),
        flag("--safe-serialization"),
        flag("--no-safe-serialization"),
        flag("--clone-tensors/--no-clone-tensors"),
        click.option("--write-threads", type=int, default=None, hidden=True),
        click.option("--lora-merge-cache", default=None, hidden=True),
        click.option("--lora-merge-dtype", default=None, hidden=True),
    ]
    for option in options:
        command = option(command)
    return command


def explain(given: Mapping[str, Any], quiet: bool) -> None:
    """Say once what is not needed, refuse what cannot be had.

    Raises: click.UsageError for refused flags.
    """
    for name, (reason, hint) in REFUSED.items():
        if given.get(name):
            raise click.UsageError(f"--{name.replace('_', '-')}: {reason}\nhint: {hint}")
    for name, reason in NOT_NEEDED.items():
        if given.get(name) is not None and not quiet:
            click.echo(f"note: --{name.replace('_', '-')} is not needed: {reason}", err=True)

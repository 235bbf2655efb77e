"""Merges in processes of their own, forked from a server that has torch loaded, so that one costs little."""

import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SWEEPS = ["robustmerge_kit.cli.sweep", "robustmerge_kit.sweep.plot", "optuna.samplers", "optuna.storages._rdb.storage"]

CONTEXT = multiprocessing.get_context("forkserver")
MERGES = ["torch", "robustmerge_kit.merge", "robustmerge_kit.methods", "robustmerge_kit.cli.run"]
CONTEXT.set_forkserver_preload([*MERGES, *SWEEPS])

WRITING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}
"""Audit events of calls that change a folder."""


def start(target: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    child = CONTEXT.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


def end(child: multiprocessing.process.BaseProcess, seconds: float = 30) -> int:
    child.join(seconds)
    code = child.exitcode
    assert code is not None, "the merge hangs"
    return code


def command(arguments: list[str], output: str | None = None, slow: float = 0.0, swap: bool = True) -> None:
    """`rmkit ...` with its output in a file; `slow` seconds at every write of weights, `swap` False: no RENAME_EXCHANGE."""
    from robustmerge_kit.cli import main

    if output is not None:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    if slow:
        _before_writes(lambda: time.sleep(slow))
    if not swap:
        _without_exchange()
    main(arguments)


def killed_at(moment: int, arguments: list[str], counter: str, swap: bool = True) -> None:
    """`rmkit ...`, ended by SIGKILL just before its `moment`-th change of the disk (from 0); `counter` lists what they were."""
    changes: list[str] = []

    def tick(event: str = "write") -> None:
        if len(changes) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        changes.append(event)

    _before_writes(tick)
    if not swap:
        _without_exchange()
    sys.addaudithook(lambda event, _: tick(event) if event in WRITING else None)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    from robustmerge_kit.cli import main

    try:
        main(arguments)
    finally:
        Path(counter).write_text("\n".join(changes))


def _without_exchange() -> None:
    from robustmerge_kit.output import folder

    folder._renameat2 = lambda *_: False  # pyright: ignore[reportPrivateUsage]


def _before_writes(action: Callable[[], None]) -> None:
    for name in ("pwrite", "fsync", "posix_fallocate"):
        real = getattr(os, name)

        def call(*arguments: Any, real: Callable[..., Any] = real) -> Any:
            action()
            return real(*arguments)

        setattr(os, name, call)

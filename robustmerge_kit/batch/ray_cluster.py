"""Tasks on the nodes of a Ray cluster, which share a file system. Ray places them by cores, GPUs and memory.

Every task runs in one of Ray's worker processes, which stay, so that torch is imported once in each. A task is never retried by
Ray itself: a worker or node that dies is told to the batch, which knows how often it may be tried.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import PluginError, UsageError
from .local import GRACE, IDLE_BYTES, LEAST_SHARE, USUAL_SHARE, in_flight, with_overhead
from .tasks import Finished, Happening, Lost, Result, Share, Task

_LOOK_AGAIN = 5.0
"""Seconds after which the cluster is asked anew what it consists of."""


class RayEngine:
    """A cluster that is there already; the engine joins it as a driver and leaves it when it is closed."""

    split_above = 1_000_000_000
    """That much takes one core eight seconds; a helper needs three if its node has to import torch first."""
    peak = 0
    budget: int | None = None

    def __init__(self, address: str | None, jobs: int | None, memory: int | None, device: str, log: Path) -> None:
        """jobs: tasks at the same time, None: as many as there are cores, or GPUs. memory: bytes for all tasks of one node.

        log: the file for what Ray has to say, which it would print among the results.

        Raises: PluginError when Ray is not installed, UsageError when there is no cluster or it lacks what is asked for.
        """
        self._ray = _import_ray()
        self._jobs = jobs
        self._memory = memory
        self._running: dict[Any, Task] = {}
        self._looked = 0.0
        where = address or os.environ.get("RAY_ADDRESS") or "auto"
        if where == "local" or device not in ("auto", "cpu", "cuda"):
            what = "--address local: a batch joins a cluster and starts none" if where == "local" else f"--device {device}"
            raise UsageError(what, hint="start one with `ray start --head`; with Ray --device is auto, cpu or cuda")
        self._talk = contextlib.ExitStack()
        said = self._talk.enter_context(log.open("w", encoding="utf-8"))
        self._talk.enter_context(contextlib.redirect_stdout(said))
        self._talk.enter_context(contextlib.redirect_stderr(said))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._ray.init(address=where, log_to_driver=False, logging_level="ERROR", configure_logging=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            self._talk.close()
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            hint = "start one with `ray start --head`, or name one with --address HOST:PORT"
            raise UsageError(f"no Ray cluster at {where}: {line}", where="--engine ray", hint=hint) from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray puts its own in their place
        self._look()
        self._gpu = device == "cuda" or (device == "auto" and self._gpus > 0)
        if self._gpu and not self._gpus:
            self.close()
            raise UsageError("--device cuda: the cluster has no GPUs", hint="use --device cpu")
        self._remote = self._ray.remote(_carry_out)

    @property
    def largest(self) -> int:
        """The largest step, in bytes, that a node could hold."""
        return in_flight(self._node_memory - IDLE_BYTES)

    def offer(self, task: Task, needs: int) -> bool:
        """Hand a task to Ray, unless as many as the cluster can run are there already."""
        self._look()
        if len(self._running) >= (self._jobs or (self._gpus if self._gpu else self._cpus)):
            return False
        merging = task.kind != "check"
        if merging and max(with_overhead(needs), LEAST_SHARE) + task.apart > self._node_memory - IDLE_BYTES:
            if task.kind == "help":
                return False
            task = replace(task, shared=False)
        equal = self._node_memory // max(1, self._node_cpus) - IDLE_BYTES
        given = max(min(equal, USUAL_SHARE + task.apart), max(with_overhead(needs), LEAST_SHARE) + task.apart) if merging else 0
        on_gpu = self._gpu and merging
        options: dict[str, Any] = {"num_cpus": 1, "memory": given + IDLE_BYTES, "max_retries": 0}
        if on_gpu:
            options["num_gpus"] = 1
        share = Share(1, in_flight(given - task.apart), "cuda:0" if on_gpu else "cpu")
        reference = self._remote.options(**options).remote(task, share)
        self._running[reference] = task
        return True

    def wait(self, seconds: float) -> list[Happening]:
        """What has ended, at the latest after some seconds."""
        if not self._running:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._end(reference) for reference in ready]

    def stop(self) -> None:
        """Interrupt all tasks, then kill what is left after some seconds."""
        for force in (False, True):
            for reference in self._running:
                self._ray.cancel(reference, force=force)
            if self._running:
                _, left = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=GRACE)
                self._running = {reference: self._running[reference] for reference in left}

    def close(self) -> None:
        """End what still runs, and leave the cluster."""
        self.stop()
        self._ray.shutdown()
        self._talk.close()

    def _end(self, reference: Any) -> Happening:
        task = self._running.pop(reference)
        try:
            return Finished(task.number, self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            line = (str(error).strip().splitlines() or [""])[0][:200]
            return Lost(task.number, f"its worker or node died ({type(error).__name__}: {line})")

    def _look(self) -> None:
        """What the cluster consists of; nodes come and go."""
        if time.monotonic() - self._looked < _LOOK_AGAIN and self._looked:
            return
        self._looked = time.monotonic()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._cpus = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
        self._gpus = int(sum(node.get("GPU", 0) for node in nodes))
        self._node_cpus = max((int(node.get("CPU", 0)) for node in nodes), default=1)
        self._node_memory = max((int(node.get("memory", 0)) for node in nodes), default=0)
        if self._memory is not None:
            self._node_memory = min(self._node_memory, self._memory)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        hint = "pip install 'robustmerge-kit[ray]'"
        raise PluginError(f"Ray is not installed ({error})", where="--engine ray", hint=hint) from error
    return ray


def _carry_out(task: Task, share: Share) -> Result:
    """Runs on a node."""
    import torch

    from .work import carry_out

    torch.set_num_threads(1)
    return carry_out(replace(task, share=share))

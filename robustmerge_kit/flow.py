"""A bounded pipeline: one reader, several workers, one writer; what is between them never exceeds a byte budget.

Independent of what is merged: jobs go in, `load` reads, `work` computes, `store` writes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Item = TypeVar("Item")


class _Stopped(Exception):
    """Another thread has failed; this one ends quietly."""


class ByteBudget:
    """Counts bytes in flight and makes the reader wait; a job larger than the limit runs alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peak = 0
        self._held = 0
        self._stopped = False
        self._changed = threading.Condition()

    def acquire(self, nbytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._held == 0 or self._held + nbytes <= self.limit)
            if self._stopped:
                raise _Stopped
            self._held += nbytes
            self.peak = max(self.peak, self._held)

    def release(self, nbytes: int) -> None:
        with self._changed:
            self._held -= nbytes
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@dataclass(frozen=True)
class Flow(Generic[Job, Loaded, Result]):
    """How jobs are run. `cost` is a job's bytes in memory from reading to writing; `ahead` jobs may wait for a worker."""

    cost: Callable[[Job], int]
    load: Callable[[Job], Loaded]
    work: Callable[[Job, Loaded], Result]
    store: Callable[[Job, Result], None]
    workers: int
    limit: int
    ahead: int = 2

    def run(self, jobs: Sequence[Job], enter_worker: Callable[[], None] = lambda: None) -> ByteBudget:
        """Run all jobs; `enter_worker` is called once in each worker thread.

        Raises: the first exception of any stage, after all threads have ended. KeyboardInterrupt likewise.
        """
        return _Run(self, jobs, enter_worker).finish()


class _Run(Generic[Job, Loaded, Result]):
    def __init__(self, flow: Flow[Job, Loaded, Result], jobs: Sequence[Job], enter_worker: Callable[[], None]) -> None:
        self._flow = flow
        self._jobs = jobs
        self._enter_worker = enter_worker
        self._budget = ByteBudget(flow.limit)
        self._loaded: queue.Queue[tuple[Job, Loaded] | None] = queue.Queue(maxsize=flow.ahead)
        self._done: queue.Queue[tuple[Job, Result] | None] = queue.Queue()
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(stage,), name=f"rmkit-{stage.__name__.strip('_')}", daemon=True)
            for stage in (self._read, *[self._work] * flow.workers, self._write)
        ]

    def finish(self) -> ByteBudget:
        for thread in self._threads:
            thread.start()
        try:
            for thread in self._threads:
                while thread.is_alive():
                    thread.join(timeout=0.5)
        except BaseException as error:
            self._fail(error)
            for thread in self._threads:
                thread.join()
        if self._failure is not None:
            raise self._failure
        return self._budget

    def _guard(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except _Stopped:
            pass
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._stop.set()
        self._budget.stop()

    def _read(self) -> None:
        for job in self._jobs:
            self._budget.acquire(self._flow.cost(job))
            self._put(self._loaded, (job, self._flow.load(job)))
        for _ in range(self._flow.workers):
            self._put(self._loaded, None)

    def _work(self) -> None:
        self._enter_worker()
        while (item := self._get(self._loaded)) is not None:
            job, loaded = item
            del item
            self._put(self._done, (job, self._flow.work(job, loaded)))
            del loaded
        self._put(self._done, None)

    def _write(self) -> None:
        running = self._flow.workers
        while running:
            item = self._get(self._done)
            if item is None:
                running -= 1
                continue
            job, result = item
            self._flow.store(job, result)
            del item, result
            self._budget.release(self._flow.cost(job))

    def _put(self, channel: queue.Queue[Item], item: Item) -> None:
        while not self._stop.is_set():
            try:
                channel.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
        raise _Stopped

    def _get(self, channel: queue.Queue[Item]) -> Item:
        while not self._stop.is_set():
            try:
                return channel.get(timeout=0.1)
            except queue.Empty:
                continue
        raise _Stopped

"""The bounded pipeline by itself: budget, overlap, order of stages, failures."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from robustmerge_kit.flow import Flow


def flow(**stages: Any) -> Flow[Any, Any, Any]:
    settings: dict[str, Any] = {
        "cost": lambda job: 10,
        "load": lambda job: job,
        "work": lambda job, loaded: loaded,
        "store": lambda job, result: None,
        "workers": 2,
        "limit": 40,
        "ahead": 2,
        **stages,
    }
    return Flow(**settings)


def workers_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rmkit-") and "hash" not in thread.name]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_job_is_stored_once(workers: int, count: int) -> None:
    stored: list[int] = []
    flow(workers=workers, work=lambda job, loaded: job * 3, store=lambda job, result: stored.append(result)).run(range(count))
    assert sorted(stored) == [3 * i for i in range(count)]
    assert workers_alive() == []


class Ledger:
    """Bytes loaded and not yet stored, seen from outside the flow."""

    def __init__(self, size: Callable[[int], int]) -> None:
        self.size = size
        self.held = self.peak = 0
        self.alone = True
        self.lock = threading.Lock()

    def take(self, job: int) -> int:
        with self.lock:
            if self.size(job) > 40 and self.held:
                self.alone = False
            self.held += self.size(job)
            self.peak = max(self.peak, self.held)
        return job

    def give(self, job: int, result: int) -> None:
        with self.lock:
            self.held -= self.size(job)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("slow", ["load", "work", "store"])
def test_outstanding_bytes_never_exceed_the_limit(slow: str, workers: int) -> None:
    ledger = Ledger(lambda job: 5 + job % 7)

    def wait(stage: str) -> None:
        time.sleep(0.002 if stage == slow else 0)

    def load(job: int) -> int:
        wait("load")
        return ledger.take(job)

    def work(job: int, loaded: int) -> int:
        wait("work")
        return loaded

    def store(job: int, result: int) -> None:
        wait("store")
        ledger.give(job, result)

    budget = flow(cost=ledger.size, load=load, work=work, store=store, workers=workers, ahead=10).run(range(60))
    assert ledger.peak <= 40
    assert ledger.peak <= budget.peak <= 40
    assert ledger.held == 0
    if slow != "load":
        assert budget.peak > 20


def test_a_job_larger_than_the_limit_runs_alone() -> None:
    ledger = Ledger(lambda job: 100 if job % 5 == 2 else 8)
    budget = flow(cost=ledger.size, load=ledger.take, store=ledger.give, workers=3, ahead=5).run(range(20))
    assert ledger.alone
    assert budget.peak == 100
    assert ledger.held == 0


def test_reading_overlaps_working() -> None:
    spans: dict[str, list[tuple[float, float]]] = {"load": [], "work": []}

    def timed(stage: str) -> None:
        start = time.perf_counter()
        time.sleep(0.01)
        spans[stage].append((start, time.perf_counter()))

    start = time.perf_counter()
    flow(load=lambda job: timed("load"), work=lambda job, loaded: timed("work"), workers=1).run(range(20))
    elapsed = time.perf_counter() - start
    shared = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in spans["load"] for b in spans["work"])
    assert shared > 0.08, f"reading and working shared {shared:.3f} s of {elapsed:.3f} s"


@pytest.mark.parametrize("stage", ["load", "work", "store", "cost", "enter"])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_in_any_stage_is_raised_and_all_threads_end(stage: str, workers: int) -> None:
    def boom(job: int = 5, *_: Any) -> int:
        if job == 5:
            raise ValueError(stage)
        return 1

    if stage == "enter":
        with pytest.raises(ValueError, match="enter"):
            flow(workers=workers).run(range(30), enter_worker=boom)
    else:
        with pytest.raises(ValueError, match=stage):
            flow(**{stage: boom}, workers=workers, limit=4).run(range(30))
    assert workers_alive() == []


def test_the_first_of_several_exceptions_is_raised() -> None:
    def work(job: int, loaded: int) -> int:
        time.sleep(0.01 * job)
        raise ValueError(str(job))

    with pytest.raises(ValueError, match="0"):
        flow(work=work, workers=3).run(range(3))
    assert workers_alive() == []


def test_an_interrupt_of_the_caller_ends_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def work(job: int, loaded: int) -> int:
        begun.set()
        time.sleep(0.002)
        return job

    real = threading.Thread.join

    def join(self: threading.Thread, timeout: float | None = None) -> None:
        if timeout is not None and begun.wait(1):
            begun.clear()
            raise KeyboardInterrupt
        real(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", join)
    with pytest.raises(KeyboardInterrupt):
        flow(work=work).run(range(5000))
    assert workers_alive() == []

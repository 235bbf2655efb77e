"""An engine that does as it is told, and courses of a batch with it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustmerge_kit.batch.schedule import Course, Settings
from robustmerge_kit.batch.tasks import Checked, Failure, Finished, Happening, Job, Lost, Merged, Task

GIB = 1 << 30


def checked(name: str, **keys: Any) -> Checked:
    known: dict[str, Any] = {"done": False, "sites": 4, "reads": 1, "writes": 1, "needs": 1, "inputs": ()}
    return Checked(**{"target": Path("/out") / name, **known, **keys})


def failure(transient: bool = False, busy: bool = False, code: int = 3) -> Failure:
    return Failure(({"where": "here", "what": "wrong", "hint": ""},), code, transient, busy)


class Puppets:
    """An engine of `places` seats. `script` holds results by kind and name, one after the other, the last one for ever."""

    def __init__(self, script: dict[tuple[str, str], Sequence[Any]], places: int = 2, largest: int = GIB) -> None:
        self.script = script
        self.places = places
        self.largest = largest
        self.split_above = 256_000_000
        self.turns: dict[tuple[str, str], int] = defaultdict(int)
        self.tasks: list[Task] = []
        self.running: list[Task] = []
        self.order: list[str] = []
        self.stopped = False
        self.before_wait: Callable[[], None] = lambda: None

    def offer(self, task: Task, needs: int) -> bool:
        if len(self.running) >= self.places:
            return False
        self.running.append(task)
        self.tasks.append(task)
        self.order.append(f"{task.kind} {task.job.name}")
        return True

    def wait(self, seconds: float) -> list[Happening]:
        self.before_wait()
        if not self.running:
            return []
        task = self.running.pop(0)
        key = (task.kind, task.job.name)
        results = self.script.get(key) or [checked(task.job.name) if task.kind == "check" else Merged(Path("/out"), False)]
        result = results[min(self.turns[key], len(results) - 1)]
        self.turns[key] += 1
        return [Lost(task.number, "killed") if result == "lost" else Finished(task.number, result)]

    def stop(self) -> None:
        self.stopped = True
        self.running = []


def course(engine: Puppets, names: str, told: list[tuple[str, dict[str, Any]]] | None = None, **settings: Any) -> Course:
    jobs = [Job(name, f"{name}.yaml") for name in names.split()]
    keep = told if told is not None else []
    made = Course(jobs, engine, Settings(**{"backoff": 0.01, **settings}), lambda event, **fields: keep.append((event, fields)))
    made.run()
    assert all(entry.status != "running" for entry in made.entries)
    return made


def statuses(made: Course) -> str:
    return " ".join(entry.status for entry in made.entries)

"""Run a command and say what it cost: `python benchmarks/measure.py COMMAND ...`.

Memory that only this process can hold (anonymous) and pages of mapped files, which the kernel may drop at any time, are
counted apart, over the process and its children, every few milliseconds. Linux only: it reads /proc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL = 0.005


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one finished command, and what it printed."""

    seconds: float
    cpu: float
    anonymous: int
    mapped: int
    written: int
    code: int
    output: str


def _resident(pid: int) -> tuple[int, int]:
    """Anonymous and file-backed bytes of one process; zeros once it is gone."""
    anonymous = mapped = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                anonymous = int(line.split()[1]) * 1024
            elif line.startswith(("RssFile:", "RssShmem:")):
                mapped += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return anonymous, mapped


def _family(pid: int) -> list[int]:
    """The process and all its descendants."""
    members = [pid]
    for member in members:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                members.extend(int(child) for child in (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return members


class _Watch(threading.Thread):
    """Samples memory until told to stop; keeps the peaks."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.anonymous = self.mapped = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(INTERVAL):
            sizes = [_resident(member) for member in _family(self.pid)]
            self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in sizes))
            self.mapped = max(self.mapped, sum(mapped for _, mapped in sizes))


def measure(command: Sequence[str], env: Mapping[str, str] | None = None) -> Cost:
    """Run `command` to its end; stdout and stderr are returned together, the exit code is not judged.

    Python may keep the bytecode it compiles, as an installed package does, whatever the environment says.
    """
    given = dict(os.environ if env is None else env)
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=given)
        watch = _Watch(process.pid)
        watch.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        watch.stopped.set()
        watch.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    cpu = used.ru_utime + used.ru_stime
    return Cost(seconds, cpu, watch.anonymous, watch.mapped, used.ru_oublock * 512, process.returncode, text)


if __name__ == "__main__":
    cost = asdict(measure(sys.argv[1:]))
    sys.stdout.write(cost.pop("output"))
    print(json.dumps(cost))
    sys.exit(cost["code"])

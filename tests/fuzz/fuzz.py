"""Feed mutated inputs to the readers of strangers' files; anything they raise but RmkitError is a finding.

    python tests/fuzz/fuzz.py [TARGET...] [--runs N] [--seed S] [--engine plain|atheris]

One line per target: executions, share that passed the outer syntax, line coverage of the reader, findings. An input that
changes what the reader says joins the pool that further inputs are made from. Findings are written to --found.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FunctionType

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from fuzz_lines import Lines  # noqa: E402
from fuzz_targets import TARGETS, Probe, Target, probing  # noqa: E402

from robustmerge_kit.errors import RmkitError, Several  # noqa: E402

SEEDS = HERE / "seeds"
POOL = 2000
"""Most inputs that further ones are made from."""
SLOW = 5.0
"""Seconds of CPU that no input may take."""

_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9]+|\S{20,}")
_UNPRINTABLE = re.compile(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass
class Session:
    """One target under fire."""

    target: Target
    probe: Probe
    draw: Random
    found: Path | None = None
    traced: int = 100
    pool: list[bytes] = field(default_factory=list)
    executions: int = 0
    passed: int = 0
    slowest: float = 0.0
    findings: dict[str, bytes] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.lines = Lines(self.target.modules, self.target.leaving_out)
        self.pool = seeds(self.target.name)
        for trace in (False, True):  # first without a clock: what is imported on first use takes seconds
            for seed in list(self.pool):
                self.execute(seed, trace)
            self.slowest, self.executions, self.passed = 0.0, 0, 0
            self.findings = {kind: data for kind, data in self.findings.items() if not kind.startswith("slow")}

    def next_input(self) -> bytes:
        """A mutation of something in the pool: often a recent arrival, mostly the shorter of two."""
        recent = self.pool[-20:] if self.draw.random() < 0.3 else self.pool
        one, other = self.draw.choice(recent), self.draw.choice(self.pool)
        data = min(one, other, key=len) if self.draw.random() < 0.7 else one
        return self.target.mutate(self.draw, data, self.target.words, other)

    def execute(self, data: bytes, trace: bool = False) -> None:
        """Read one input and judge what came of it."""
        self.probe.passed = False
        self.executions += 1
        before = time.perf_counter()
        said = self.lines.trace(lambda: self._said(data)) if trace else self._said(data)
        taken = time.perf_counter() - before
        self.passed += self.probe.passed
        if taken > self.slowest:
            self.slowest = taken
            if taken > SLOW and self._cpu_seconds(data) > SLOW:
                self._report(f"slow: {taken:.1f} s", data)
        if said not in self.seen:
            self.seen.add(said)
            if len(data) < 20_000 and not trace:
                # the lines of something new are always worth knowing
                self.lines.trace(lambda: self._said(data))
                self._keep(data)

    def _cpu_seconds(self, data: bytes) -> float:
        """What an input really costs, as others may have had the processor; asking for CPU time is slow itself."""
        before = time.process_time()
        self._said(data)
        return time.process_time() - before

    def _keep(self, data: bytes) -> None:
        if len(self.pool) < POOL:
            self.pool.append(data)
        else:
            self.pool[self.draw.randrange(POOL // 2, POOL)] = data

    def _said(self, data: bytes) -> str:
        """What became of an input: where in the code it was refused, and for what kinds of mistakes."""
        try:
            self.target.read(data, self.probe)
        except RmkitError as error:
            parts = error.errors if isinstance(error, Several) else (error,)
            for part in parts:
                if _UNPRINTABLE.search(str(part)):
                    self._report(f"a message with control characters: {part!r}", data)
            if len(parts) > 1:
                return " ".join(sorted({_VARYING.sub("?", part.what)[:30] for part in parts}))
            return _place(error)
        except Exception as error:
            self._report(f"{type(error).__name__} at {_place(error)}: {error!s:.200}", data)
            return f"{type(error).__name__} {_place(error)}"
        return "read"

    def _report(self, what: str, data: bytes) -> None:
        kind = _VARYING.sub("?", what)[:60]
        if kind in self.findings:
            return
        self.findings[kind] = data
        print(f"FINDING {self.target.name}: {what}\n  {data[:300]!r}", file=sys.stderr)
        if self.found is not None:
            self.found.mkdir(parents=True, exist_ok=True)
            (self.found / f"{self.target.name}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)

    def line(self, seconds: float, engine: str) -> str:
        """The log line."""
        return (
            f"{self.target.name}: {self.executions} executions ({engine}), "
            f"{self.passed / max(1, self.executions):.1%} pass the outer syntax, "
            f"line coverage {self.lines.share:.1%}, {len(self.seen)} kinds of outcome, "
            f"slowest {self.slowest * 1e3:.0f} ms, findings {len(self.findings)}, {seconds:.0f} s of CPU"
        )


def _place(error: BaseException) -> str:
    """File and line that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""


def seeds(name: str) -> list[bytes]:
    """The kept seeds of a target."""
    return [path.read_bytes() for path in sorted((SEEDS / name).iterdir())]


@contextmanager
def session(name: str, seed: int = 0, found: Path | None = None, traced: int = 100) -> Iterator[Session]:
    """A target with its seeds read; every `traced`-th input has its lines counted."""
    with probing() as probe:
        yield Session(TARGETS[name], probe, Random(f"{name} {seed}"), found, traced)


def run_plain(state: Session, runs: int, tell: int = 0) -> None:
    """Mutate, read, repeat; `tell` how far it is after every so many inputs."""
    start = time.process_time()
    for index in range(1, runs + 1):
        state.execute(state.next_input(), trace=index % state.traced == 0)
        if tell and index % tell == 0 and index < runs:
            print(state.line(time.process_time() - start, "so far"), file=sys.stderr, flush=True)


def run_atheris(state: Session, runs: int) -> None:
    """The same mutations with libFuzzer choosing what to mutate, by coverage of the instrumented readers; never returns."""
    import atheris

    for module in state.target.modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(value))
    start = time.process_time()
    atexit.register(lambda: print(state.line(time.process_time() - start, "atheris"), flush=True))

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        draw = Random(seed)
        if draw.random() < 0.1:
            return atheris.Mutate(data, limit)
        other = state.draw.choice(state.pool)
        return state.target.mutate(draw, data if data.strip() else other, state.target.words, other)[:limit]

    def one(data: bytes) -> None:
        state.execute(data, trace=state.executions % state.traced == 0)

    with tempfile.TemporaryDirectory() as corpus:  # libFuzzer adds what it finds to the first folder it is given
        options = ["-verbosity=0", "-print_final_stats=0", "-max_len=4096", "-timeout=60", f"-atheris_runs={runs}"]
        atheris.Setup([sys.argv[0], *options, corpus, str(SEEDS / state.target.name)], one, custom_mutator=mutate)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["plain", "atheris"], default="plain", help="atheris takes one target")
    parser.add_argument("--found", type=Path, default=HERE / "found")
    parser.add_argument("--missing", action="store_true", help="list the lines that never ran")
    chosen = parser.parse_args()
    if chosen.engine == "atheris" and len(chosen.targets) != 1:
        parser.error("--engine atheris takes one target")
    failed = False
    for name in chosen.targets or TARGETS:
        with session(name, chosen.seed, chosen.found) as state:
            start = time.process_time()
            if chosen.engine == "atheris":
                run_atheris(state, chosen.runs)
            run_plain(state, chosen.runs, tell=50_000)
            print(state.line(time.process_time() - start, "plain"), flush=True)
            if chosen.missing:
                print("  never ran:", " ".join(state.lines.missing()))
            failed |= bool(state.findings)
    sys.exit(failed)


if __name__ == "__main__":
    main()

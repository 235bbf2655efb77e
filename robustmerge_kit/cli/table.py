"""A batch as it goes: bars that change in place on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any, TextIO

from tqdm import tqdm

Tell = Callable[..., None]

_LINES = {
    "skipped": "{job}: {reason}",
    "failed": "{job}: failed: {reason}",
    "stopped": "{job}: stopped",
    "done": "{job}: done in {seconds:.1f} s",
    "retry": "{job}: attempt {attempt} failed, again in {seconds:.0f} s: {reason}",
    "worker_lost": "{job}: {reason}",
    "busy": "{job}: waits: {reason}",
    "helping": "{job}: free workers help, {helpers} at the moment",
    "helped": "{job}: a helper wrote {number} files",
    "draining": "finishing what runs; a second signal stops it",
    "stopping": "stopping what runs",
}
"""Event -> line; other events are not told."""

_LAST = ("done", "skipped", "failed", "stopped")
"""Events after which a job is over."""

_MOST_BARS = 8


@contextlib.contextmanager
def table(quiet: bool, stream: TextIO) -> Generator[Tell]:
    """A listener for the events of a batch."""
    if quiet:
        yield lambda event, **fields: None
        return
    shown = _Bars(stream) if stream.isatty() else _Lines(stream)
    try:
        yield shown.take
    finally:
        shown.close()


class _Lines:
    """One line for each thing worth knowing, with how many jobs are over."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.total = 0
        self.over = 0

    def take(self, event: str, **fields: Any) -> None:
        if event == "batch":
            self.total = fields["jobs"]
        elif event in ("checks", "merges") and fields["jobs"]:
            self.say(f"{'checking' if event == 'checks' else 'merging'} {fields['jobs']} recipes")
        self.over += event in _LAST
        if event in _LINES:
            count = f"[{self.over}/{self.total}] " if event in _LAST else ""
            self.say(count + _line(event, fields))

    def say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    def close(self) -> None:
        pass


class _Bars(_Lines):
    """One bar for the batch, one for each merge that runs; lines go above them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._all: tqdm[Any] | None = None
        self._bars: dict[str, tqdm[Any]] = {}
        self._places: dict[str, int] = {}
        self._sites: dict[str, int] = {}
        self._failed = 0

    def take(self, event: str, **fields: Any) -> None:
        if event in ("checks", "merges"):
            self._begin("checking" if event == "checks" else "merging")
        elif event == "checked":
            self._sites[fields["job"]] = fields["sites"]
        elif event == "started" and len(self._bars) < _MOST_BARS:
            self._open(fields["job"])
        elif event == "progress" and fields["job"] in self._bars:
            bar = self._bars[fields["job"]]
            bar.update(fields["sites"] - bar.n)
        elif event in (*_LAST, "retry", "busy") and fields["job"] in self._bars:
            self._bars.pop(fields["job"]).close()
        super().take(event, **fields)
        if event in _LAST and self._all is not None:
            self._failed += event == "failed"
            self._all.set_postfix_str(f"{self._failed} failed" if self._failed else "", refresh=False)
            self._all.update(1)

    def _begin(self, doing: str) -> None:
        if self._all is None:
            self._all = tqdm(total=self.total, unit="recipe", file=self.stream, position=0, mininterval=0.1)
        self._all.set_description_str(doing)

    def _open(self, job: str) -> None:
        used = {bar.pos for bar in self._bars.values()}
        place = next(i for i in range(1, _MOST_BARS + 2) if -i not in used)
        self._bars[job] = tqdm(
            total=self._sites.get(job), desc=f"  {job[-40:]}", unit="site", file=self.stream, position=place, leave=False
        )

    def say(self, line: str) -> None:
        tqdm.write(line, file=self.stream)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        if self._all is not None:
            self._all.close()


def _line(event: str, fields: dict[str, Any]) -> str:
    if event == "failed":
        first, *more = fields["errors"]
        reason = f"{first['where']}: {first['what']}".removeprefix(": ")
        fields = {**fields, "reason": reason + (f" (and {len(more)} more)" if more else "")}
    if event == "helped":
        fields = {**fields, "number": len(fields["files"])}
    return f"{time.strftime('%H:%M:%S')} {_LINES[event].format(**fields)}"

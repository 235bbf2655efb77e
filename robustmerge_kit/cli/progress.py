"""Progress on stderr: sites done, sites per second, bytes read per second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm


class Progress:
    """A tqdm bar that starts once the number of sites is known; silent with `quiet`."""

    def __init__(self, quiet: bool, doing: str = "merging") -> None:
        self._quiet = quiet
        self._doing = doing
        self._bar: tqdm[Any] | None = None
        self._bytes = 0
        self._start = 0.0

    def start(self, sites: int) -> None:
        """Show the bar."""
        self._start = time.perf_counter()
        self._bar = tqdm(total=sites, unit="site", desc=self._doing, disable=self._quiet, mininterval=0.2)

    def step(self, name: str, sites: int, nbytes: int) -> None:
        """Count one finished step."""
        if self._bar is None:
            return
        self._bytes += nbytes
        elapsed = max(time.perf_counter() - self._start, 1e-6)
        self._bar.set_postfix_str(f"{self._bytes / elapsed / 1e6:.0f} MB/s", refresh=False)
        self._bar.update(sites)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

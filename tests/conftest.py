"""Shared fixtures: where real test inputs lie, command lines run in this process; deterministic threads."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import Answer, Call

from robustmerge_kit.cli import rmkit
from robustmerge_kit.cli.failures import guarded

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_inputs() -> Path:
    """The folder of real adapters, tasks and peer scripts; tests that need it skip where it is absent."""
    place = os.environ.get("RMKIT_TEST_INPUTS", "")
    if not place or not Path(place).is_dir():
        pytest.skip("RMKIT_TEST_INPUTS does not name a folder with the real test inputs")
    return Path(place).resolve()


@pytest.fixture
def same_handler() -> Iterator[None]:
    """Commands handle SIGTERM; pytest's own handler comes back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def call(same_handler: None, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line: `call("run x.yaml --quiet")`, or in parts, which may hold blanks: `call("run", path)`."""

    def run(line: str = "", *more: object) -> Answer:
        code = guarded(rmkit, [*line.split(), *map(str, more)])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run

"""Shared fixtures: where real test inputs lie, deterministic threads."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_inputs() -> Path:
    """The folder of real adapters, tasks and peer scripts; tests that need it skip where it is absent."""
    place = os.environ.get("RMKIT_TEST_INPUTS", "")
    if not place or not Path(place).is_dir():
        pytest.skip("RMKIT_TEST_INPUTS does not name a folder with the real test inputs")
    return Path(place).resolve()

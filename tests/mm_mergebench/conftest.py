"""Puts the benchmark on the path before any test of this folder is imported; its package has the folder's name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

"""Search for a recipe's best settings: many merges of the same adapters, each scored, in a study that can be gone on with.

Start reading in `run`, then `study`. `merging` merges, `evaluate` and `functions` score, `diagnostics` scores without data.
"""

from .run import Result, Settings, run_sweep
from .trials import Trial

__all__ = ["Result", "Settings", "Trial", "run_sweep"]

"""Many merges as one: `run_batch` with an engine, on one machine (`LocalEngine`) or a Ray cluster.

Start reading in `run`, then `schedule`. A process of the local engine is `worker`, what it does about a task is `work`.
"""

from .local import Limits, LocalEngine
from .machine import available_memory
from .run import run_batch
from .schedule import Settings
from .signals import Signals
from .summary import lines

__all__ = ["Limits", "LocalEngine", "Settings", "Signals", "available_memory", "lines", "run_batch"]

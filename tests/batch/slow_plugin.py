"""A plugin whose methods take their time, wait for a file, or end their process; installed as a folder on PYTHONPATH."""

from pathlib import Path

_MODULE = """
import os
import signal
import time

import torch

from robustmerge_kit.method import Coefficient, Params


class Slowly(Params):
    seconds: float = 0.15
    until: str = ""


class Once(Params):
    mark: str


def merge_slowly(gram, weights, params):
    time.sleep(params.seconds)
    end = time.monotonic() + 120
    while params.until and not os.path.exists(params.until) and time.monotonic() < end:
        time.sleep(0.02)
    return torch.ones_like(gram[..., 0])


def merge_or_die(gram, weights, params):
    if not os.path.exists(params.mark):
        if params.mark:
            open(params.mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.ones_like(gram[..., 0])


SLOW = Coefficient(name="slow", paper="none", params=Slowly, merge=merge_slowly, needs_gram=False)
DEADLY = Coefficient(name="deadly", paper="none", params=Once, merge=merge_or_die, needs_gram=False)
"""


def install(place: Path) -> str:
    """The folder to put on PYTHONPATH: methods `slow` and `deadly` (dies until the file `mark` exists; "" is never there)."""
    (place / "slow_merges.py").write_text(_MODULE)
    metadata = place / "slow_merges-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-merges\nVersion: 0.1\n")
    entries = "[robustmerge_kit.methods]\nslow = slow_merges:SLOW\ndeadly = slow_merges:DEADLY\n"
    (metadata / "entry_points.txt").write_text(entries)
    return str(place)

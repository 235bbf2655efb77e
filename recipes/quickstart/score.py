"""Score a merge of the quick start's adapters for a sweep: `python recipes/quickstart/score.py FOLDER` prints one number.

The number is the mean accuracy over the four tasks on the images that the base was trained on. No adapter has seen these, and
the base has never seen them as the tasks do. The held-out images are left for `evaluate.py`, which judges what was chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from digits import TASKS, accuracy
from evaluate import with_adapter


def validation(folder: Path, params: Mapping[str, Any]) -> float:
    """Mean accuracy over the tasks, in percent."""
    torch.set_num_threads(1)
    model = with_adapter(folder)
    return sum(accuracy(model, task, "pretrain") for task in TASKS) / len(TASKS)


if __name__ == "__main__":
    print(validation(Path(sys.argv[1]), {}))

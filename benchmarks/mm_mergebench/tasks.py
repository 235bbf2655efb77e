"""The twelve tasks: which files they read, how their images are prepared, how long answers may be, how they are scored.

Everything here is what the released evaluation does (github.com/AuroraZengfh/RobustMerge: scripts/eval_merge, llava/eval),
task by task; docs/mm_mergebench.md says what is odd about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robustmerge_kit.errors import UsageError

Preparation = Literal["crop", "pad"]


@dataclass(frozen=True)
class Task:
    """One task. `folders` are the names its folder goes by in the published data, the released scripts' name first.

    images: `crop` cuts the middle square out of the image, `pad` lays bars around it. official, corrected: names in
    metrics.METRICS. references: a file of reference captions in COCO's layout. adapter: the released adapter trained on it.
    """

    name: str
    seen: bool
    folders: tuple[str, ...]
    questions: str
    official: str
    corrected: str
    images: Preparation
    new_tokens: int
    adapter: str | None = None
    references: str | None = None


TASKS = (
    Task("ScienceQA", True, ("ScienceQA",), "test.json", "letter", "letter_anywhere", "crop", 1024, "ScienceQA"),
    Task("ImageNet", True, ("ImageNet",), "test.json", "either_contains", "same_name", "crop", 1024, "ImageNet"),
    Task("VQAv2", True, ("VQAv2",), "val.json", "exact", "vqa_accuracy", "crop", 1024, "VQAv2"),
    Task("REC", True, ("Grounding", "REC"), "test.json", "box_cut", "box_whole", "crop", 1024, "REC"),
    Task("OCRVQA", True, ("OCRVQA",), "test.json", "exact_answerable", "vqa_accuracy", "pad", 128, "OCRVQA"),
    Task(
        "VizWiz",
        True,
        ("VizWiz-caption", "VizWiz"),
        "val.json",
        "caption_mean",
        "cider",
        "pad",
        128,
        "VizWiz",
        "val_coco_type.json",
    ),
    Task(
        "Flickr30k",
        True,
        ("flickr30k-caption", "Flickr30k", "Flickr30k-cap"),
        "val_brief.json",
        "caption_mean",
        "cider",
        "pad",
        128,
        "flickr30k",
        "val_coco_type.json",
    ),
    Task("IconQA", True, ("IconQA",), "val.json", "exact", "vqa_accuracy", "pad", 128, "IconQA"),
    Task("AOKVQA", False, ("AOKVQA",), "val.json", "exact", "letter_anywhere", "crop", 1024),
    Task("ImageNet-R", False, ("ImageNet-R",), "test.json", "either_contains", "same_name", "pad", 1024),
    Task(
        "Screen2words",
        False,
        ("Screen2words",),
        "test.json",
        "caption_mean",
        "cider",
        "pad",
        128,
        references="test_coco_type.json",
    ),
    Task("TabMWP", False, ("TabMWP",), "test.json", "exact", "same_number", "pad", 128),
)
"""In the order of the paper's Table 2."""


def choose_tasks(wanted: Sequence[str]) -> tuple[Task, ...]:
    """The tasks named, in the table's order; `all`, `seen` and `unseen` stand for groups.

    Raises: UsageError for a name that no task has.
    """
    known = {task.name.lower(): task for task in TASKS}
    chosen: set[str] = set()
    for name in wanted:
        group = {"all": TASKS, "seen": [t for t in TASKS if t.seen], "unseen": [t for t in TASKS if not t.seen]}.get(name)
        if group is None and name.lower() not in known:
            raise UsageError(f"--tasks {name}: no such task", hint="all, seen, unseen, or " + ", ".join(t.name for t in TASKS))
        chosen.update(task.name for task in (group if group is not None else [known[name.lower()]]))
    return tuple(task for task in TASKS if task.name in chosen)

"""A task's answers -> its figures: as released, corrected, and how many answers they rest on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .captions import cider, mean_of_seven, split_words, why_not_seven
from .metrics import METRICS
from .questions import Question
from .tasks import Task


@dataclass(frozen=True)
class TaskScore:
    """Figures in percent. official: None where it cannot be computed here, then `note` says why.

    answered of questions: a figure stands for its task only if all are answered. more: further figures by name.
    """

    task: str
    official: float | None
    corrected: float
    answered: int
    questions: int
    more: Mapping[str, float] = field(default_factory=dict[str, float])
    note: str = ""

    @property
    def complete(self) -> bool:
        return self.answered == self.questions


def score_task(task: Task, questions: Sequence[Question], texts: Mapping[int, str]) -> TaskScore | None:
    """The figures of the answers there are, by position of their question; None for no answers."""
    asked = [question for question in questions if question.position in texts]
    said = [texts[question.position] for question in asked]
    if not asked:
        return None
    if task.references:
        return _score_captions(task, asked, said, len(questions))
    official = [METRICS[task.official](text, question) for text, question in zip(said, asked, strict=True)]
    corrected = [METRICS[task.corrected](text, question) for text, question in zip(said, asked, strict=True)]
    more: dict[str, float] = {}
    shown = [right for right, question in zip(official, asked, strict=True) if question.image is not None]
    if task.official == "letter" and shown:
        more["with an image"] = _percent(shown)
    return TaskScore(task.name, _percent(official), _percent(corrected), len(asked), len(questions), more)


def _score_captions(task: Task, asked: Sequence[Question], said: Sequence[str], questions: int) -> TaskScore:
    seven = mean_of_seven(said, [question.captions for question in asked])
    captions = [
        (split_words(text), [split_words(one) for one in question.by_image]) for text, question in zip(said, asked, strict=True)
    ]
    official = seven.pop("mean", None)
    return TaskScore(task.name, official, _percent(cider(captions)), len(asked), questions, seven, why_not_seven())


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)


def save_scores(path: Path, base: str, name: str, scores: Sequence[TaskScore]) -> None:
    """Put a candidate's figures into the results, beside those of other candidates and tasks."""
    content = read_scores(path)
    content["base"] = base
    content.setdefault("candidates", {}).setdefault(name, {}).update({score.task: asdict(score) for score in scores})
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def read_scores(path: Path) -> dict[str, Any]:
    """The results so far; empty where there are none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

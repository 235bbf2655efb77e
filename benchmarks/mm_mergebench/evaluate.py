"""Candidates x tasks -> answers -> scores; whatever a killed run has answered is kept and not asked again."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from robustmerge_kit.adapters import Adapter
from robustmerge_kit.sources import digest

from .answers import AnswerFile
from .candidates import Candidate
from .llava import Llava, check_base, choose_dtype
from .questions import Question
from .scores import TaskScore, score_task
from .tasks import Preparation, Task

PROMPT = "vicuna_v1"


@dataclass
class Evaluation:
    """How answers are made; `limit` asks only the first questions of every task. One model is in memory at a time."""

    base: str
    out: Path
    device: str
    dtype: str = "auto"
    batch: int = 8
    images: Preparation | None = None
    limit: int | None = None
    restart: bool = False
    quiet: bool = False
    _loaded: tuple[str, Adapter | None, Llava] | None = field(default=None, init=False)
    _identities: dict[str, str] = field(default_factory=dict[str, str], init=False)

    def run(self, candidate: Candidate, tasks: Mapping[Task, Sequence[Question]]) -> Iterator[TaskScore]:
        """Answer what is not answered yet and score it, task by task.

        Raises: RmkitError; what has been answered by then stays.
        """
        for task, questions in tasks.items():
            if task.name not in candidate.adapters:
                continue
            score = self._task(candidate, task, questions)
            if score is not None:
                yield score

    def _task(self, candidate: Candidate, task: Task, questions: Sequence[Question]) -> TaskScore | None:
        adapter, base = candidate.adapters[task.name], candidate.model or self.base
        preparation = self.images or task.images
        maker = {
            "model": candidate.name,
            "base": self._identity(base),
            "adapter": identify_adapter(adapter),
            "questions": identify_questions(questions),
            "prompt": PROMPT,
            "images": preparation,
            "new_tokens": task.new_tokens,
            "dtype": str(choose_dtype(self.dtype, self.device)).removeprefix("torch."),
        }
        with AnswerFile(self.out / "answers" / candidate.name / f"{task.name}.jsonl", maker, self.restart) as file:
            waiting = [question for question in questions[: self.limit] if question.position not in file.texts]
            with tqdm(total=len(waiting), desc=f"{candidate.name} {task.name}", disable=self.quiet or not waiting) as progress:
                while waiting:
                    now, waiting = waiting[: self.batch], waiting[self.batch :]
                    for part, texts in self._answer(base, adapter, now, preparation, task.new_tokens):
                        file.append(part, texts)
                        progress.update(len(part))
            return score_task(task, questions, file.texts)

    def _answer(
        self, base: str, adapter: Adapter | None, questions: Sequence[Question], preparation: Preparation, new_tokens: int
    ) -> Iterator[tuple[Sequence[Question], list[str]]]:
        """The answers, in parts that fit the GPU: a batch that does not is halved, for the rest of the run too."""
        try:
            yield questions, self._model(base, adapter).answer(questions, preparation, new_tokens)
            return
        except torch.OutOfMemoryError:
            if len(questions) == 1:
                raise
        torch.cuda.empty_cache()
        self.batch = half = max(1, len(questions) // 2)
        for start in range(0, len(questions), half):
            yield from self._answer(base, adapter, questions[start : start + half], preparation, new_tokens)

    def _model(self, base: str, adapter: Adapter | None) -> Llava:
        if self._loaded is None or self._loaded[0] != base or self._loaded[1] is not adapter:
            if self.quiet:
                disable_progress_bar()
            self._loaded = None
            if self.device.startswith("cuda"):
                gc.collect()
                torch.cuda.empty_cache()
            llava = Llava.load(base, adapter, self.device, choose_dtype(self.dtype, self.device))
            self._loaded = base, adapter, llava
        return self._loaded[2]

    def _identity(self, base: str) -> str:
        if base not in self._identities:
            self._identities[base] = identify_base(base)
        return self._identities[base]


def identify_base(base: str) -> str:
    """What the base is known by: its repository and commit, or its folder and the sizes of the weights in it."""
    folder = Path(base)
    if not folder.is_dir():
        return f"{base}@{getattr(check_base(base), '_commit_hash', None)}"
    sizes = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    return f"{folder.resolve()} {hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]}"


def identify_adapter(adapter: Adapter | None) -> dict[str, str] | None:
    """The sha256 of the files an adapter's numbers come from."""
    if adapter is None:
        return None
    return {path.name: found.sha256 for path, found in digest(adapter.files).items()}


def identify_questions(questions: Sequence[Question]) -> str:
    """A sha256 of all that is asked, of which images by name, in which order."""
    asked = [(question.id, question.text, question.image.name if question.image else None) for question in questions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

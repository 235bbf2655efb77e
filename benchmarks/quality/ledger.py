"""What was trained and scored so far, as the cache folder says it; knows no encoder and no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .scores import Score, Scores, Trial
from .settings import Row, Setting
from .train_order import MULTITASK, Wanted

ZERO_SHOT, INDIVIDUAL = "zero-shot", "individual"
SEEDS = (0, 1, 2)
RANK = 16
FIRST = Wanted("").group
SHARED = Wanted("", initial="shared").group


@dataclass(frozen=True)
class Ledger:
    """The scores of one modality on so many rows of each task."""

    cache: Path
    test_rows: int
    choose_rows: int
    scores: Scores = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", Scores(self.cache / "scores.jsonl"))

    def adapter(self, group: str, name: str) -> Path:
        """The folder of an adapter."""
        return self.cache / "adapters" / group / name

    def ready(self, group: str, names: Sequence[str]) -> bool:
        """Whether these adapters of a group are trained."""
        return all((self.adapter(group, name) / "training.json").exists() for name in names)

    def trial(self, setting: str, group: str, split: str, names: Sequence[str] = ()) -> Trial:
        """What is asked, in full; without names, of the adapters of all seen tasks."""
        return Trial(setting, group, split, self.choose_rows if split == "validation" else self.test_rows, tuple(names))

    def score(self, setting: Setting, group: str, split: str = "test", names: Sequence[str] = ()) -> Score | None:
        """The score of a merge."""
        return self.scores.get(self.trial(setting.key, group, split, names))

    def zero_shot(self, split: str = "test") -> Score | None:
        """The plain encoder's score."""
        return self.scores.get(self.trial(ZERO_SHOT, "", split))

    def individual(self, group: str, name: str) -> float | None:
        """Accuracy of one adapter on its own task."""
        found = self.scores.get(self.trial(INDIVIDUAL, group, "test", [name]))
        return found.accuracy[name] if found else None

    def multitask(self, seed: int) -> Score | None:
        """The score of the adapter trained on all seen tasks."""
        return self.scores.get(self.trial(MULTITASK, Wanted("", seed=seed).group, "test"))

    def tried(self, row: Row) -> list[tuple[Setting, Score]]:
        """The candidates of a row that were tried on the validation rows."""
        found = [(setting, self.score(setting, FIRST, "validation")) for setting in row.candidates]
        return [(setting, score) for setting, score in found if score]

    def choose(self, row: Row) -> Setting:
        """The candidate of the best mean accuracy on the validation rows; the default where none was tried."""
        tried = self.tried(row)
        return max(tried, key=lambda each: each[1].mean(list(each[1].accuracy)))[0] if tried else row.default

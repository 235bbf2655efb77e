"""A fold on its way into a staged folder: the weights with their journal, then everything around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .fold import conclude, fold
from .outcome import Outcome
from .output import Journal, ModelWeights, clear_around, remove_journals, write_around
from .plan import Plan
from .resources import Resources
from .sources import FileDigest


@dataclass(frozen=True)
class Written:
    """What the weights' writing left: measurements, and the digests of files that are known already."""

    outcome: Outcome
    digests: Mapping[str, FileDigest] = field(default_factory=dict[str, FileDigest])


@dataclass(frozen=True)
class Folding:
    """One fold and where it goes. identity: what determines every byte of it; identities: what keys the random numbers."""

    plan: Plan
    stage: Path
    identity: str
    identities: Sequence[str]
    resources: Resources
    observe: Callable[[str, int, int], None] = lambda name, sites, nbytes: None

    def write(self) -> Written:
        """Write the model, or what an earlier run left to do of it.

        Raises: what `fold` raises, OutputError when the disk refuses.
        """
        assert self.plan.fold is not None
        clear_around(self.stage, self.plan.fold)
        journal = Journal(self.stage, self.identity)
        try:
            weights, outcome = self.fold(self.plan, journal)
            weights.close()
        finally:
            journal.close()
        conclude(self.plan, journal.done, outcome)
        write_around(self.stage, self.plan.fold)
        remove_journals(self.stage)
        return Written(outcome, weights.digests)

    def fold(self, plan: Plan, journal: Journal) -> tuple[ModelWeights, Outcome]:
        """Fold the plan or a part of it; until the weights are closed, the last files are still being hashed.

        Raises: what `fold` raises.
        """
        assert plan.fold is not None
        weights = ModelWeights(self.stage, plan.fold, journal)
        try:
            return weights, fold(plan, weights, journal, self.identities, self.resources, self.observe)
        except BaseException:
            weights.abandon()
            raise

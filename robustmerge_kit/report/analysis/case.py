"""What the rules of the verdict look at, and how they say what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from .records import AdapterFacts, Finding, MethodFacts, Pair, Site, TaskInMerge, Totals
from .thresholds import THRESHOLDS

Level = Literal["problem", "warning", "advice", "good"]


class Collision(NamedTuple):
    """Two updates that use the same directions on one side, left or right, for different things."""

    overlap: float
    path: str
    side: str
    pair: Pair


@dataclass(frozen=True)
class Case:
    """A report without its verdict."""

    adapters: Sequence[AdapterFacts]
    methods: Sequence[MethodFacts]
    totals: Totals
    sites: Sequence[Site]

    def name(self, adapter: int) -> str:
        """An adapter's label."""
        return self.adapters[adapter].label

    def both(self, pair: Pair) -> str:
        """The labels of two adapters."""
        return f"{self.name(pair.first)} and {self.name(pair.second)}"

    def pairs(self) -> list[tuple[str, Pair, float]]:
        """Every pair with its place in the report and its cosine."""
        return [
            (f"totals.pairs[{index}]", pair, pair.cosine)
            for index, pair in enumerate(self.totals.pairs)
            if pair.cosine is not None
        ]

    def collisions(self) -> list[Collision]:
        """Pairs that are not related and use the same directions on one side, the largest overlap first."""
        found: list[Collision] = []
        for path, pair, cosine in self.pairs():
            if not bound("opposed") < cosine < bound("related"):
                continue
            for side, subspaces in (("left", pair.left), ("right", pair.right)):
                if subspaces is None:
                    continue
                chance = self._chance(pair, side)
                if subspaces.overlap >= max(bound("collide"), bound("collide_chance") * chance):
                    found.append(Collision(subspaces.overlap, f"{path}.{side}.overlap", side, pair))
        return sorted(found, key=lambda each: -each.overlap)

    def _chance(self, pair: Pair, side: str) -> float:
        """Overlap of random subspaces, the larger dimension over that of the space; mean over the sites."""
        shares: list[float] = []
        for site in self.sites:
            one, two = site.updates[pair.first], site.updates[pair.second]
            if one and two:
                shares.append(max(one.rank, two.rank) / (site.d_out if side == "left" else site.d_in))
        return fmean(shares) if shares else 0.0

    def tasks(self, method: int) -> list[tuple[str, int, TaskInMerge]]:
        """What a method does to every adapter, with the place in the report."""
        found = enumerate(self.totals.merges[method].tasks)
        return [(f"totals.merges[{method}].tasks[{index}]", index, task) for index, task in found if task is not None]


def bound(threshold: str) -> float:
    """A threshold's value."""
    return THRESHOLDS[threshold].value


def finding(
    level: Level,
    rule: str,
    sentence: str,
    figure: float,
    path: str,
    *,
    threshold: str = "",
    adapters: Sequence[int] = (),
    methods: Sequence[int] = (),
) -> Finding:
    """A sentence of the verdict; the threshold is called like the rule unless said otherwise."""
    return Finding(
        rule=rule,
        level=level,
        sentence=sentence,
        figure=figure,
        threshold=threshold or rule,
        path=path,
        adapters=tuple(adapters),
        methods=tuple(methods),
    )

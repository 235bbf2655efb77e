"""A fold in parts that have no file in common, so that several processes can each do some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from .steps import Plan


def divide(plan: Plan) -> tuple[Plan, ...]:
    """A plan that folds as several, each for files of its own, in the order of the files; together they do what it does.

    Files that one site or tensor lies in stay together. The plan itself, undivided, when it must read the factors of all sites
    before the first is merged (ranks that depend on the data, `scope: global`): every process would have to do that anew.
    """
    fold = plan.fold
    if fold is None or plan.rank_depends_on_data or any(step.survey is not None for step in plan.steps):
        return (plan,)
    file_of = {file.prefix + spec.name: number for number, file in enumerate(fold.files) for spec in file.specs}
    files_of_sites = {step.site: {file_of[place.tensor] for place in fold.places[step.site]} for step in plan.steps}
    group = _connect(len(fold.files), files_of_sites.values())
    steps, changes, copies = defaultdict(list), defaultdict(list), defaultdict(list)
    for step in plan.steps:
        steps[group[min(files_of_sites[step.site])]].append(step)
    for change in fold.changes:
        changes[group[file_of[change.tensor]]].append(change)
    for copy in fold.copies:
        copies[group[file_of[copy.tensor]]].append(copy)
    return tuple(
        replace(
            plan,
            steps=tuple(steps[first]),
            fold=replace(
                fold,
                changes=tuple(changes[first]),
                copies=tuple(copies[first]),
                files=tuple(file for number, file in enumerate(fold.files) if group[number] == first),
            ),
        )
        for first in sorted(set(group))
    )


def _connect(count: int, edges: Iterable[set[int]]) -> list[int]:
    """The least number of the group that every number belongs to, where numbers of one edge are in one group."""
    group = list(range(count))
    for edge in edges:
        joined = {group[number] for number in edge}
        if len(joined) > 1:
            group = [min(joined) if one in joined else one for one in group]
    return group

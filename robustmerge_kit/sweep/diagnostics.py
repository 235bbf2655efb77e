"""How well a merge keeps what its adapters do, from their weights alone: a score to rank recipes by, without data.

Every update D_t = scale * B_t A_t, as trained and at weight 1, is compared with P_t, the merged update D seen through the
subspaces that D_t reads from and writes to. With projection p_t and crosstalk c_t as in `rmkit analyze`,

    preserved_t = 1 - ||P_t - D_t||^2 / ||D_t||^2 = 1 - (1 - p_t)^2 - c_t^2
    energy      = ||D||^2 / sum_t ||D_t||^2
    score       = mean of preserved_t over the adapters - max(0, energy - 1)

so 1 means that every update acts on its own subspaces as it did alone, 0 that the merge is worth no more than the base model,
and less than 0 that it disturbs more than it brings. A merge larger than all updates together pays for it, because the excess
acts on inputs that no adapter was trained for. The score knows neither tasks nor labels.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..adapters import read_factors
from ..base_weight import relative_to_base
from ..cores import Cores
from ..execute import Observe
from ..flow import Flow
from ..hashing import Hashing
from ..merge import decide_ranks
from ..plan import Inputs, Plan, SiteStep, gather, make_plan
from ..recipe import Recipe
from ..report.analysis.at_site import merge_at, updates_at
from ..report.analysis.merges import nothing
from ..report.analysis.records import Merge, TaskInMerge
from ..report.analysis.totals import total_merge
from ..report.analysis.updates import Updates
from ..resources import Resources
from ..sites import Factors, LoadedSite, Sites, group_sites


@dataclass(frozen=True)
class Diagnosis:
    """The figures of one merge, all sites together.

    score: see above; higher is better. worst: the smallest preserved_t. energy: see above. projection: size of an update in the
    merge, 1 the whole. crosstalk: what the others add in its directions, in units of its norm. intact: share of an update that
    a rescaling gives back, p^2 / (p^2 + c^2). cosine: of update and merge. top, rest: |cosine| with which the strongest
    direction, and all others, are found again, mean of both sides. kept: share of the energy that the cut to the output's rank
    keeps. inside: share of the merge's energy within the joint subspaces of the updates. preserved: one per adapter, None for
    one that is zero. From projection to rest, figures are means over the adapters.
    """

    score: float
    worst: float
    energy: float
    projection: float
    crosstalk: float
    intact: float
    cosine: float
    top: float
    rest: float
    kept: float
    inside: float
    preserved: tuple[float | None, ...]

    def parts(self) -> dict[str, float]:
        """The single figures by name, for records and correlations."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "preserved"}


def diagnose(recipe: Recipe, *, resources: Resources | None = None) -> Diagnosis:
    """The figures of a recipe's merge; nothing is written.

    Raises: RmkitError, as a run of the recipe would.
    """
    inputs = gather(recipe)
    with Hashing(inputs) as hashing:
        return Diagnostics(inputs, recipe, hashing, resources).diagnose(recipe)


class Diagnostics:
    """The updates of some adapters, to judge merges of them by; what does not depend on the merge is computed once.

    recipe: any recipe with these inputs. Bases and singular vectors of the updates are kept as long as they fit into
    `resources.memory`, and computed again for every merge where they do not. cores: of the merges, likewise. May be used by
    several threads.
    """

    def __init__(
        self,
        inputs: Inputs,
        recipe: Recipe,
        hashing: Hashing,
        resources: Resources | None = None,
        cores: Cores | None = None,
    ) -> None:
        self.resources = resources or Resources()
        self.inputs = inputs
        self.hashing = hashing
        self.device = torch.device(self.resources.device)
        self.trained = make_plan(_as_trained(recipe), inputs)
        self._shared = Sites(self.trained, self._identities(self.trained), self.device)
        self._cores = cores
        self._kept: dict[str, Updates | None] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def diagnose(self, recipe: Recipe, observe: Observe = lambda name, sites, nbytes: None) -> Diagnosis:
        """The figures of a merge of these adapters.

        Raises: RmkitError, as a run of the recipe would.
        """
        plan = make_plan(recipe, self.inputs)
        identities = self._identities(plan)
        plan = decide_ranks(plan, identities, self.resources, self._cores)
        merging = Sites(plan, identities, self.device, self._cores)
        merging.survey()
        steps = {step.site: step for step in plan.steps}
        found: list[tuple[str, Merge, list[float | None]]] = []

        def store(step: SiteStep, judged: list[tuple[str, Merge, list[float | None]]]) -> None:
            found.extend(judged)
            observe(step.site, 1, step.read_bytes)

        flow = Flow(
            cost=lambda step: 2 * step.work_bytes,
            load=lambda step: read_factors([member.factors for member in step.members]),
            work=lambda step, factors: self._judge(step, steps.get(step.site), factors, merging),
            store=store,
            workers=self.resources.workers,
            limit=self.resources.memory,
            ahead=self.resources.workers,
        )
        flow.run(list(self.trained.steps), enter_worker=lambda: torch.set_num_threads(1))
        found.sort(key=lambda each: each[0])
        sizes = [size for _, _, size in found]
        norms = [math.sqrt(math.fsum((size[t] or 0.0) ** 2 for size in sizes)) for t in range(len(self.inputs.adapters))]
        return summarize(total_merge([merge for _, merge, _ in found], sizes, norms), math.fsum(norm**2 for norm in norms))

    def _identities(self, plan: Plan) -> list[str]:
        return self.hashing.identities() if plan.random else [adapter.label for adapter in plan.adapters]

    def _judge(
        self, trained: SiteStep, step: SiteStep | None, factors: Factors, merging: Sites
    ) -> list[tuple[str, Merge, list[float | None]]]:
        """A site, or every expert of a fused one: its name, what the merge does there, norms of the updates."""
        adapters = range(len(self.inputs.adapters))
        references = self._sites(trained, factors)
        merged = self._sites(step, _of_members(step, trained, factors)) if step else {}
        judged: list[tuple[str, Merge, list[float | None]]] = []
        for name, here in references.items():
            updates = self._updates(name, here)
            each = updates.each if updates else {}
            sizes = [each[t].energy ** 0.5 if t in each else None for t in adapters]
            merge = merge_at(merged[name], merging, updates, adapters) if name in merged else nothing(updates, adapters)
            judged.append((name, merge, sizes))
        return judged

    def _sites(self, step: SiteStep, factors: Factors) -> dict[str, LoadedSite]:
        relative = relative_to_base(step, factors, self.device)
        return {site.step.site: site for group in group_sites((step,), [relative]) for site in group}

    def _updates(self, name: str, here: LoadedSite) -> Updates | None:
        """The updates of a site as trained, from memory where they are kept."""
        with self._lock:
            if name in self._kept:
                return self._kept[name]
        updates = updates_at(here, self._shared)
        nbytes = sum(x.nbytes for x in (updates.q_a, updates.q_b)) if updates else 0
        with self._lock:
            if name not in self._kept and self._bytes + nbytes <= self.resources.memory:
                self._kept[name] = updates
                self._bytes += nbytes
        return updates


def summarize(merge: Merge, trained: float) -> Diagnosis:
    """The figures of a merge. trained: the squared norms of all updates as trained, summed."""
    tasks = [task for task in merge.tasks if task]
    kept = [None if task is None else _preserved(task) for task in merge.tasks]
    known = [each for each in kept if each is not None]
    energy = merge.norm**2 / trained if trained else 0.0
    return Diagnosis(
        score=_mean(known) - max(0.0, energy - 1.0),
        worst=min(known, default=0.0),
        energy=energy,
        projection=_mean([task.projection for task in tasks]),
        crosstalk=_mean([task.crosstalk for task in tasks]),
        intact=1.0 - _mean([task.destroyed for task in tasks]),
        cosine=_mean([task.cosine or 0.0 for task in tasks]),
        top=_mean([(task.top.left + task.top.right) / 2 for task in tasks]),
        rest=_mean([(task.rest.left + task.rest.right) / 2 for task in tasks if task.rest]),
        kept=merge.kept,
        inside=1.0 - merge.invented,
        preserved=tuple(kept),
    )


def _preserved(task: TaskInMerge) -> float:
    return 1.0 - (1.0 - task.projection) ** 2 - task.crosstalk**2


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _of_members(step: SiteStep, trained: SiteStep, factors: Factors) -> Factors:
    """The factors of a step's members, out of those of all adapters at the site."""
    by_index = {member.index: pair for member, pair in zip(trained.members, factors, strict=True)}
    return [by_index[member.index] for member in step.members]


def _as_trained(recipe: Recipe) -> Recipe:
    """A recipe whose updates are those of the adapters as they were trained: weight 1, no steps, nothing cut."""
    plain: Mapping[str, Any] = {
        "merge_method": "task_arithmetic",
        "space": None,
        "parameters": {},
        "overrides": (),
        "pre": (),
        "post": (),
        "adapters": tuple(entry.model_copy(update={"parameters": {}}) for entry in recipe.adapters),
        "output": recipe.output.model_copy(update={"rank": "auto"}),
    }
    return recipe.model_copy(update=plain)

"""Plan -> tensors: read, merge, hand over, one step after another within the memory budget."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from .adapters import check_values, read_factors
from .base_weight import relative_to_base
from .cores import Cores
from .errors import InputError, PlanError
from .factors import LowRank
from .flow import Flow
from .outcome import Outcome, SiteReport
from .pipeline import finish, measure_rounding, singular_values
from .plan import ExtraStep, Plan, SiteStep, settle_ranks
from .recipe import EnergyRank
from .resources import Resources
from .sites import Factors, LoadedSite, Sites, group_sites


@runtime_checkable
class Sink(Protocol):
    """Where finished tensors go, in any order, from one thread."""

    def write(self, name: str, tensor: torch.Tensor) -> None: ...


Observe = Callable[[str, int, int], None]
"""Called as work proceeds: name of the step, sites done, bytes read."""

Job = ExtraStep | tuple[SiteStep, ...]


def execute(
    plan: Plan,
    sink: Sink,
    identities: Sequence[str],
    resources: Resources,
    observe: Observe = lambda name, sites, nbytes: None,
    cores: Cores | None = None,
) -> Outcome:
    """Run the plan: every tensor of `plan.factor_specs` and `plan.extra_specs` is written to `sink` exactly once.

    identities: what keys the random numbers, one per recipe adapter. cores: kept from earlier merges, and for later ones.

    Raises: InputError for NaN or Inf in an input, PlanError for extras that must agree and do not.
    """
    outcome = Outcome()
    runner = _Runner(plan, identities, resources, outcome, cores)

    def store(job: Job, result: list[_Merged] | torch.Tensor) -> None:
        if isinstance(job, ExtraStep):
            assert isinstance(result, torch.Tensor)
            sink.write(job.spec.name, result)
            observe(job.name, 0, job.read_bytes)
            return
        assert isinstance(result, list)
        for merged in result:
            for name, tensor in zip(merged.step.names, merged.step.stored(merged.rounded.a, merged.rounded.b), strict=True):
                sink.write(name, tensor)
            runner.report(merged)
            outcome.memory.look()
            observe(merged.step.site, 1, merged.step.read_bytes)

    start = time.perf_counter()
    runner.sites.survey()
    budget = runner.flow(runner.work, store).run([*plan.extras, *runner.batches(plan.steps)], runner.enter_worker)
    outcome.seconds = time.perf_counter() - start
    outcome.peak_in_flight = budget.peak
    outcome.sites.sort(key=lambda report: report.site)
    outcome.note_approximations()
    _refuse_all_zero(plan, outcome)
    return outcome


def decide_ranks(plan: Plan, identities: Sequence[str], resources: Resources, cores: Cores | None = None) -> Plan:
    """The plan with the rank of every site decided; reads the inputs once more where ranks depend on singular values.

    What spans all sites is surveyed here then, and the plan remembers it for these identities.

    Raises: what `execute` raises; PlanError when the serving program takes no rank that large.
    """
    if not plan.rank_depends_on_data:
        return plan
    runner = _Runner(plan, identities, resources, Outcome(), cores)
    spectra: dict[str, torch.Tensor] = {}

    def store(job: Job, result: dict[str, torch.Tensor]) -> None:
        spectra.update(result)

    runner.sites.survey()
    runner.flow(runner.spectra, store).run(runner.batches(plan.steps), runner.enter_worker)
    return replace(settle_ranks(plan, spectra), surveyed=runner.sites.surveys)


@dataclass(frozen=True)
class _Merged:
    step: SiteStep
    rounded: LowRank
    retained: float
    norm2: float
    error2: float
    zero: tuple[int, ...]


class _Runner:
    """The stages of the flow for one plan."""

    def __init__(
        self, plan: Plan, identities: Sequence[str], resources: Resources, outcome: Outcome, cores: Cores | None
    ) -> None:
        self.plan = plan
        self.resources = resources
        self.outcome = outcome
        self.device = torch.device(resources.device)
        self.dtype: torch.dtype = getattr(torch, plan.dtype)
        self.sites = Sites(plan, identities, self.device, cores)
        self._streams = threading.local()

    def flow(self, work: Callable[..., object], store: Callable[..., None]) -> Flow[Job, object, object]:
        return Flow(
            cost=self.cost,
            load=self.load,
            work=work,
            store=store,
            workers=self.resources.workers,
            limit=self.resources.memory,
            ahead=self.resources.workers,
        )

    def enter_worker(self) -> None:
        torch.set_num_threads(1)
        if self.device.type == "cuda":
            self._streams.stream = torch.cuda.Stream(self.device)

    def cost(self, job: Job) -> int:
        if isinstance(job, ExtraStep):
            return job.read_bytes + job.work_bytes
        work = sum(step.work_bytes for step in job)
        return work if self.device.type == "cpu" else sum(step.read_bytes for step in job)

    def batches(self, steps: Sequence[SiteStep]) -> list[tuple[SiteStep, ...]]:
        """Groups of steps that run as one launch, in the order of their first member."""
        if self.resources.batch is None and self.device.type == "cpu":
            return [(step,) for step in steps]
        groups: dict[object, list[SiteStep]] = defaultdict(list)
        for step in steps:
            groups[step.shape_key].append(step)
        batches: list[tuple[SiteStep, ...]] = []
        for group in groups.values():
            size = (
                1
                if not group[0].batches or group[0].experts
                else self.resources.batch or max(1, self._gpu_budget() // max(1, group[0].work_bytes))
            )
            batches += [tuple(group[i : i + size]) for i in range(0, len(group), size)]
        return batches

    def _gpu_budget(self) -> int:
        free = self.resources.gpu_memory
        if free is None:
            free = int(0.8 * torch.cuda.mem_get_info(self.device)[0])
        return free // (self.resources.workers + 1)

    @property
    def energy(self) -> float | None:
        """The share of energy the recipe asks ranks to keep, if it does."""
        rule = self.plan.recipe.output.rank
        return rule.energy if isinstance(rule, EnergyRank) else None

    # --- stages -------------------------------------------------------------------------------------------------------

    def load(self, job: Job) -> list[Factors] | list[torch.Tensor]:
        if isinstance(job, ExtraStep):
            return [ref.read() for ref in job.refs]
        return [[self._pin(pair) for pair in read_factors([member.factors for member in step.members])] for step in job]

    def _pin(self, factors: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.device.type != "cuda":
            return factors
        return factors[0].pin_memory(), factors[1].pin_memory()

    def work(self, job: Job, loaded: list[Factors] | list[torch.Tensor]) -> list[_Merged] | torch.Tensor:
        if isinstance(job, ExtraStep):
            return _merge_extra(job, loaded)  # pyright: ignore[reportArgumentType]
        with self._on_device():
            groups = group_sites(job, self._relative(job, loaded))  # pyright: ignore[reportArgumentType]
            merged = [merged for group in groups for merged in self._merge_halving(group)]
        return _join_experts(job, merged)

    def spectra(self, job: Job, loaded: list[Factors]) -> dict[str, torch.Tensor]:
        assert not isinstance(job, ExtraStep)
        found: dict[str, torch.Tensor] = {}
        with self._on_device():
            for group in group_sites(job, self._relative(job, loaded)):
                if not group[0].present:
                    found |= {site.step.site: torch.zeros(1, dtype=torch.float64) for site in group}
                    continue
                step = group[0].step
                merged, draws = self.sites.merge(group, self.device)
                values = singular_values(merged, step, self.energy, draws).cpu().reshape(len(group), -1)
                found |= {site.step.site: values[i] for i, site in enumerate(group)}
        return found

    def _relative(self, job: tuple[SiteStep, ...], loaded: list[Factors]) -> list[Factors]:
        return [relative_to_base(step, factors, self.device) for step, factors in zip(job, loaded, strict=True)]

    @contextlib.contextmanager
    def _on_device(self) -> Generator[None]:
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self.device), torch.cuda.stream(self._streams.stream):
            yield

    def _merge_halving(self, group: list[LoadedSite]) -> list[_Merged]:
        """Merge a batch; when device memory runs out, merge its halves, and a single site on the CPU."""
        try:
            return self._merge(group, self.device)
        except torch.OutOfMemoryError:
            pass
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(group) == 1:
            if self.device.type == "cpu":
                raise PlanError(
                    f"not enough memory to merge site {group[0].step.site}", hint="lower -j or --memory, or free memory"
                )
            self.outcome.notes.append(f"{group[0].step.site}: too large for the GPU, merged on the CPU")
            return self._merge(group, torch.device("cpu"))
        half = len(group) // 2
        return self._merge_halving(group[:half]) + self._merge_halving(group[half:])

    def _merge(self, group: list[LoadedSite], device: torch.device) -> list[_Merged]:
        step = group[0].step
        if not group[0].present:
            return [self._merge_nothing(site) for site in group]
        merged, draws = self.sites.merge(group, device)
        finished = finish(merged, step, draws)
        retained = finished.retained.reshape(-1).tolist()
        b = finished.factors.b.reshape(len(group), step.model.d_out, step.width)
        a = finished.factors.a.reshape(len(group), step.width, step.model.d_in)
        return [self._round(site, LowRank(b[i], a[i]), retained[i], finished.orthogonal) for i, site in enumerate(group)]

    def _merge_nothing(self, site: LoadedSite) -> _Merged:
        step = site.step
        b, a = torch.zeros(step.model.d_out, step.width), torch.zeros(step.width, step.model.d_in)
        return self._round(site, LowRank(b, a), 1.0, orthogonal=True)

    def _round(self, site: LoadedSite, exact: LowRank, retained: float, orthogonal: bool) -> _Merged:
        rounded = LowRank(exact.b.to(self.dtype), exact.a.to(self.dtype))
        measured = measure_rounding(exact, rounded, orthogonal)
        if not math.isfinite(measured.norm2 + measured.error2):
            raise PlanError(
                f"the result does not fit into {self.plan.dtype}",
                where=f"site {site.step.site}",
                hint="set output.dtype: float32 or bfloat16, or lower gain and weights",
            )
        on_host = LowRank(rounded.b.cpu(), rounded.a.cpu())
        return _Merged(site.step, on_host, retained, measured.norm2, measured.error2, site.zero)

    def report(self, merged: _Merged) -> None:
        """Add a finished site to the outcome."""
        out = self.outcome
        out.norm2 += merged.norm2
        out.error2 += merged.error2
        out.kept2 += merged.norm2
        out.full2 += merged.norm2 / max(merged.retained, 1e-300)
        out.sites.append(
            SiteReport(
                site=merged.step.site,
                method=merged.step.method.name,
                rank=merged.step.width if merged.step.cut is None else merged.step.cut,
                retained=merged.retained,
                norm=math.sqrt(merged.norm2),
                rounding=math.sqrt(merged.error2 / merged.norm2) if merged.norm2 > 0 else 0.0,
                zero=merged.zero,
                approximated=self.sites.approximated.get(merged.step.site, {}),
            )
        )


def _join_experts(job: tuple[SiteStep, ...], merged: list[_Merged]) -> list[_Merged]:
    """The sites of a job, with the experts of a fused parameter side by side again."""
    parts = {one.step.site: one for one in merged}
    return [_joined(step, [parts[one.site] for one in step.each()]) if step.experts else parts[step.site] for step in job]


def _joined(step: SiteStep, parts: list[_Merged]) -> _Merged:
    norm2 = sum(part.norm2 for part in parts)
    whole2 = sum(part.norm2 / max(part.retained, 1e-300) for part in parts)
    return _Merged(
        step=step,
        rounded=LowRank(torch.stack([part.rounded.b for part in parts]), torch.stack([part.rounded.a for part in parts])),
        retained=norm2 / whole2 if whole2 > 0 else 1.0,
        norm2=norm2,
        error2=sum(part.error2 for part in parts),
        zero=tuple(sorted(set.intersection(*(set(part.zero) for part in parts)))),
    )


def _merge_extra(step: ExtraStep, values: list[torch.Tensor]) -> torch.Tensor:
    for ref, value in zip(step.refs, values, strict=True):
        if value.is_floating_point():
            check_values(ref.where, value)
    dtype: torch.dtype = getattr(torch, step.spec.dtype)
    if step.rule == "mean":
        total = sum(step.weights)
        mean = torch.zeros(step.spec.shape)
        for weight, value in zip(step.weights, values, strict=True):
            mean += value.float() * (weight / total)
        return mean.to(dtype)
    for ref, value in zip(step.refs[1:], values[1:], strict=True):
        if not torch.equal(value, values[0]):
            raise PlanError(
                f"{step.name} differs between {step.refs[0].path} and {ref.path}",
                where="extras",
                hint="choose extras: mean, first, {first: NAME} or drop",
            )
    return values[0].to(dtype)


def _refuse_all_zero(plan: Plan, outcome: Outcome) -> None:
    alive: set[int] = set()
    listed: set[int] = set()
    for step, report in zip(plan.steps, outcome.sites, strict=True):
        members = {member.index for member in step.members}
        listed |= members
        alive |= members - set(report.zero)
    untrained = sorted(listed - alive)
    if not alive:
        raise InputError("every adapter is untrained: all their B or A factors are zero", hint="check the training runs")
    outcome.notes += [f"{plan.adapters[i].label}: untrained: every B is zero, contributes nothing" for i in untrained]

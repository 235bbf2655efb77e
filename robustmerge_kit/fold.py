"""Folding a plan into its base: every changed tensor is read, changed and written in tiles, with one rounding.

A job is a site with all its places, a tensor made of whole tensors of the inputs, or a tensor that is taken over as it is.
Jobs are independent. Only the delta of one site and a tile per worker are in memory, whatever the size of the model.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import xxhash

from . import native
from .adapters import check_values, read_factors
from .base_weight import relative_to_base
from .deltas import SiteDelta, delta_of
from .errors import InputError, PlanError
from .flow import Flow
from .outcome import Outcome, SiteReport
from .plan import TILE, Change, Copy, Fold, Place, Plan, SiteStep, job_bytes
from .resources import Resources
from .shards import TensorRef, bytes_of, will_read
from .sites import Factors, LoadedSite, Sites, group_sites
from .whole_tensors import made_of

Job = SiteStep | Change | Copy
Region = tuple[str, int, int]
"""Elements of a tensor: its name, first element, end."""


class Canvas(Protocol):
    """The files of the model. `prepare` is called from one thread, in order of the jobs; the rest from any thread."""

    def expect(self, jobs: Iterable[Sequence[str]]) -> None:
        """The tensors of every job there will be; called first."""
        ...

    def prepare(self, tensor: str) -> None:
        """Make sure that the file of a tensor is there."""
        ...

    def write(self, tensor: str, start: int, values: torch.Tensor) -> None:
        """Store elements of a tensor from `start` on."""
        ...

    def read(self, tensor: str, start: int, stop: int) -> bytes:
        """What lies where these elements belong."""
        ...

    def finish(self, tensors: Sequence[str]) -> None:
        """A job of these tensors is done."""
        ...


class Progress(Protocol):
    """What survives a killed run: records of finished jobs, those that are added too."""

    @property
    def done(self) -> Mapping[str, Mapping[str, Any]]: ...

    def add(self, job: str, record: Mapping[str, Any]) -> None: ...


def fold(
    plan: Plan,
    canvas: Canvas,
    progress: Progress,
    identities: Sequence[str],
    resources: Resources,
    observe: Callable[[str, int, int], None] = lambda name, sites, nbytes: None,
) -> Outcome:
    """Run a plan that folds: every region of `plan.fold` is written to `canvas` exactly once, or found there as recorded.

    identities: what keys the random numbers, one per recipe adapter. What the records say of the sites, `conclude` adds to the
    outcome, once all parts of a plan are done.

    Raises: InputError for NaN or Inf in an input; PlanError for whole tensors that must agree and do not, and for results that
        the dtype cannot hold.
    """
    assert plan.fold is not None
    outcome = Outcome()
    folder = _Folder(plan, plan.fold, canvas, identities, resources, outcome)
    start = time.perf_counter()

    def store(job: Job, record: dict[str, Any]) -> None:
        progress.add(key_of(job), record)
        canvas.finish(tensors_of(job, plan.fold))
        outcome.memory.look()
        observe(key_of(job), int(isinstance(job, SiteStep)), folder.nbytes(job))

    waiting: list[Job] = []
    jobs = folder.jobs()
    canvas.expect([tensors_of(job, plan.fold) for job in jobs])
    for job in jobs:
        record = progress.done.get(key_of(job))
        if record is not None and folder.holds(job, record):
            canvas.finish(tensors_of(job, plan.fold))
            observe(key_of(job), int(isinstance(job, SiteStep)), 0)
            outcome.resumed += 1
        else:
            waiting.append(job)
    folder.survey()
    flow = Flow(
        cost=job_bytes,
        load=folder.load,
        work=folder.work,
        store=store,
        workers=resources.workers,
        limit=resources.memory,
        ahead=resources.workers,
    )
    budget = flow.run(waiting, folder.enter_worker)
    outcome.seconds = time.perf_counter() - start
    outcome.peak_in_flight = budget.peak
    return outcome


def conclude(plan: Plan, records: Mapping[str, Mapping[str, Any]], outcome: Outcome) -> None:
    """Add to the outcome what the records of all jobs of a plan say of its sites.

    Raises: InputError when no adapter changes anything.
    """
    for step in sorted(plan.steps, key=lambda step: step.site):
        _report(step, records[key_of(step)], outcome)
    outcome.note_approximations()
    _refuse_untrained(plan, outcome)


def key_of(job: Job) -> str:
    """What a job is called in the journal."""
    if isinstance(job, SiteStep):
        return f"site {job.site}"
    return f"change {job.tensor}" if isinstance(job, Change) else f"copy {job.tensor}"


def regions(job: Job, fold: Fold) -> Iterator[Region]:
    """What a job writes, in the order it does."""
    if isinstance(job, SiteStep):
        yield from ((place.tensor, place.first, place.end) for place in fold.places[job.site])
    elif isinstance(job, Change):
        yield job.tensor, 0, job.spec.numel
    else:
        yield from ((job.tensor, start, end) for start, end in job.ranges)


def tensors_of(job: Job, fold: Fold | None) -> tuple[str, ...]:
    """The tensors a job writes to, each once."""
    assert fold is not None
    return tuple(dict.fromkeys(name for name, _, _ in regions(job, fold)))


@dataclass(frozen=True)
class _Written:
    """Checksum of what was written, squared norm of the delta where it is only known afterwards, squared rounding error."""

    checksum: str
    norm2: float
    error2: float


class _Folder:
    """The stages of the flow for one plan."""

    def __init__(
        self,
        plan: Plan,
        fold: Fold,
        canvas: Canvas,
        identities: Sequence[str],
        resources: Resources,
        outcome: Outcome,
    ) -> None:
        self.plan = plan
        self.fold = fold
        self.canvas = canvas
        self.outcome = outcome
        self.device = torch.device(resources.device)
        self.devices = [self.device, *map(torch.device, resources.others)]
        self.sites = Sites(plan, identities, self.device)
        self.specs = fold.specs
        self._local = threading.local()
        self._entering = threading.Lock()
        self._entered = 0

    def jobs(self) -> list[Job]:
        """All jobs, file by file, so that a file is complete as early as can be."""
        places = {name: index for index, name in enumerate(self.specs)}
        every: list[Job] = [*self.plan.steps, *self.fold.changes, *self.fold.copies]
        return sorted(every, key=lambda job: min(places[name] for name in tensors_of(job, self.fold)))

    def holds(self, job: Job, record: Mapping[str, Any]) -> bool:
        """Whether the files hold what a record says a job wrote."""
        checksum = xxhash.xxh3_64()
        for tensor, start, end in regions(job, self.fold):
            self.canvas.prepare(tensor)
            for first in range(start, end, TILE):
                checksum.update(self.canvas.read(tensor, first, min(end, first + TILE)))
        return checksum.hexdigest() == record.get("checksum")

    def survey(self) -> None:
        """Collect the statistics that span all sites; they live on the first device, and so does all work that needs them."""
        self.sites.survey()
        if self.sites.surveys:
            del self.devices[1:]

    def enter_worker(self) -> None:
        torch.set_num_threads(1)
        with self._entering:
            self._local.device = self.devices[self._entered % len(self.devices)]
            self._entered += 1
        if self.device.type == "cuda":
            self._local.stream = torch.cuda.Stream(self._local.device)

    def nbytes(self, job: Job) -> int:
        """Bytes read for a job."""
        own = 0 if isinstance(job, Copy) else job.read_bytes
        origins = ((self._base(name), end - start) for name, start, end in regions(job, self.fold))
        return own + sum(ref.spec.nbytes * count // ref.spec.numel for ref, count in origins if ref)

    def _base(self, tensor: str) -> TensorRef | None:
        return self.fold.base.tensors.get(self.fold.origins.get(tensor, tensor))

    # --- stages -------------------------------------------------------------------------------------------------------

    def load(self, job: Job) -> Factors:
        for tensor in tensors_of(job, self.fold):
            self.canvas.prepare(tensor)
            ref = self._base(tensor)
            if ref is not None:
                will_read(ref)
        return read_factors([member.factors for member in job.members]) if isinstance(job, SiteStep) else []

    def work(self, job: Job, loaded: Factors) -> dict[str, Any]:
        if isinstance(job, Copy):
            return {"checksum": self._take_over(job)}
        with self._on_device():
            return self._add(job, loaded) if isinstance(job, SiteStep) else self._change(job)

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._local.stream) if self._local.device.type == "cuda" else nullcontext()

    def _take_over(self, copy: Copy) -> str:
        ref = self.fold.base.tensors[copy.origin]
        dtype: torch.dtype = getattr(torch, self.specs[copy.tensor].dtype)
        checksum = xxhash.xxh3_64()
        for start, end in copy.ranges:
            for first in range(start, end, TILE):
                values = self._read(ref, first, min(end, first + TILE)).to(dtype)
                if dtype.is_floating_point and dtype != getattr(torch, ref.spec.dtype):
                    _refuse_overflow(values, ref, copy.tensor)
                self._store(copy.tensor, first, values, checksum)
        return checksum.hexdigest()

    def _store(self, tensor: str, start: int, values: torch.Tensor, checksum: xxhash.xxh3_64) -> None:
        flat = values.reshape(-1).cpu()
        self.canvas.write(tensor, start, flat)
        checksum.update(bytes_of(flat))

    def _read(self, ref: TensorRef, start: int, stop: int) -> torch.Tensor:
        """Elements of a tensor, valid until this worker reads again."""
        size = ref.spec.nbytes // max(1, ref.spec.numel)
        return ref.read_flat(start, stop, self._scratch("stored", (stop - start) * size, torch.uint8))

    # --- sites --------------------------------------------------------------------------------------------------------

    def _add(self, step: SiteStep, factors: Factors) -> dict[str, Any]:
        groups = group_sites((step,), [relative_to_base(step, factors, self._local.device)])
        try:
            written, retained = self._add_on(step, groups, self._local.device)
        except torch.OutOfMemoryError:
            if self.device.type == "cpu":
                raise PlanError(
                    f"not enough memory to fold site {step.site}", hint="lower -j or --memory, or free memory"
                ) from None
            torch.cuda.empty_cache()
            self.outcome.notes.append(f"{step.site}: too large for the GPU, folded on the CPU")
            written, retained = self._add_on(step, groups, torch.device("cpu"))
        if not math.isfinite(written.norm2 + written.error2):
            self._refuse_infinite(step)
        zero = set.intersection(*(set(site.zero) for group in groups for site in group))
        shares = self.sites.approximated.get(step.site, {})
        return {"retained": retained, "zero": sorted(zero), "approximated": list(shares.items()), **asdict(written)}

    def _add_on(self, step: SiteStep, groups: Sequence[list[LoadedSite]], device: torch.device) -> tuple[_Written, float]:
        delta, retained = delta_of(self.sites, groups, device, step)
        checksum, error2 = xxhash.xxh3_64(), 0.0
        for place in self.fold.places[step.site]:
            for first, rows in _tiles(place):
                tile = self._tile(delta, place, first, rows, device)
                rounded, lost = self._round(tile, getattr(torch, self.specs[place.tensor].dtype))
                self._store(place.tensor, place.first + first * place.cols, rounded, checksum)
                error2 += lost
        return _Written(checksum.hexdigest(), delta.norm2 if delta else 0.0, error2), retained

    def _refuse_infinite(self, step: SiteStep) -> None:
        for place in self.fold.places[step.site]:
            ref = self._base(place.tensor)
            assert ref is not None
            for first in range(place.first, place.end, TILE):
                check_values(ref.where, ref.read_flat(first, min(place.end, first + TILE)))
        raise PlanError(
            f"the result does not fit into {self.specs[self.fold.places[step.site][0].tensor].dtype}",
            where=f"site {step.site}",
            hint="set output.dtype: float32 or bfloat16, or lower gain and weights",
        )

    def _tile(self, delta: SiteDelta | None, place: Place, first: int, rows: int, device: torch.device) -> torch.Tensor:
        """Rows of a place, before rounding."""
        ref = self._base(place.tensor)
        assert ref is not None
        start = place.first + first * place.cols
        stored = self._read(ref, start, start + rows * place.cols).view(rows, place.cols)
        dtype: torch.dtype = getattr(torch, self.specs[place.tensor].dtype)
        exact = torch.float64 if torch.float64 in (dtype, stored.dtype) else torch.float32
        if device.type == "cuda":
            stored = stored.pin_memory().to(device, non_blocking=True)
        tile = self._scratch("tile", stored.numel(), exact, device).view(rows, place.cols).copy_(stored)
        if delta is not None:
            delta.add_to(tile, place, first)
        return tile

    def _round(self, tile: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
        """A tile in the dtype it is written in, and the squared norm of what that changed; not finite where a result is not."""
        if tile.dtype == dtype:
            return tile, 0.0 if torch.isfinite(tile.sum()) else math.inf
        rounded = self._scratch("rounded", tile.numel(), dtype, tile.device).view(tile.shape)
        if native.fits(tile) and native.fits(rounded):
            return rounded, native.round_into(tile, rounded)
        rounded.copy_(tile)
        # Torch subtracts tensors of two dtypes at a third of the speed of a conversion and a subtraction.
        off = self._scratch("rounding", tile.numel(), tile.dtype, tile.device).copy_(rounded.view(-1))
        off -= tile.view(-1)
        return rounded, float(torch.dot(off, off))

    def _scratch(self, use: str, numel: int, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
        """Room that this worker takes up for the same use again and again: fresh memory costs a page fault per page."""
        rooms: dict[tuple[str, torch.dtype, torch.device | None], torch.Tensor] = self._local.__dict__.setdefault("rooms", {})
        room = rooms.get((use, dtype, device))
        if room is None or room.numel() < numel:
            room = rooms[use, dtype, device] = torch.empty(max(numel, TILE), dtype=dtype, device=device)
        return room[:numel]

    # --- whole tensors ------------------------------------------------------------------------------------------------

    def _change(self, change: Change) -> dict[str, Any]:
        base = self._base(change.tensor)
        cols = math.prod(change.spec.shape[1:])
        size = max(1, TILE // max(1, cols)) * max(1, cols)
        dtype: torch.dtype = getattr(torch, self.specs[change.tensor].dtype)
        checksum = xxhash.xxh3_64()
        for first in range(0, change.spec.numel, size):
            end = min(change.spec.numel, first + size)
            rounded = made_of(change, base, first, end).to(dtype)
            if dtype.is_floating_point:
                _refuse_overflow(rounded, change.parts[0].ref, change.tensor)
            self._store(change.tensor, first, rounded, checksum)
        return {"checksum": checksum.hexdigest()}


def _report(step: SiteStep, record: Mapping[str, Any], outcome: Outcome) -> None:
    norm2, error2, retained = record["norm2"], record["error2"], record["retained"]
    outcome.norm2 += norm2
    outcome.error2 += error2
    outcome.kept2 += norm2
    outcome.full2 += norm2 / max(retained, 1e-300)
    outcome.sites.append(
        SiteReport(
            site=step.site,
            method=step.method.name,
            rank=step.full_rank if step.cut is None else step.cut,
            retained=retained,
            norm=math.sqrt(norm2),
            rounding=math.sqrt(error2 / norm2) if norm2 > 0 else 0.0,
            zero=tuple(record["zero"]),
            approximated=dict(record["approximated"]),
        )
    )


def _tiles(place: Place) -> Iterator[tuple[int, int]]:
    """First row and number of rows of every tile; fixed by the shape, so that results are too."""
    size = max(1, TILE // place.cols)
    for first in range(0, place.rows, size):
        yield first, min(size, place.rows - first)


def _refuse_overflow(values: torch.Tensor, ref: TensorRef, tensor: str) -> None:
    if not torch.isfinite(values).all() and torch.isfinite(values.float().nan_to_num(0, 0, 0)).all():
        raise PlanError(
            f"{tensor} ({ref.path.name}) does not fit into {str(values.dtype).removeprefix('torch.')}",
            hint="set output.dtype: float32 or bfloat16",
        )


def _refuse_untrained(plan: Plan, outcome: Outcome) -> None:
    zero = {report.site: set(report.zero) for report in outcome.sites}
    if not any(member.index not in zero[step.site] for step in plan.steps for member in step.members):
        raise InputError("every adapter is untrained: all their B or A factors are zero", hint="check the training runs")

"""What adapters consist of and what is wrong with them, one report each; a broken one does not hide the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters import Adapter, Extra, SiteFactors
from ..disclosure import printable
from ..errors import RmkitError
from ..flow import Flow
from ..resources import available_cores
from ..sources import Source, resolve
from .fit import compare
from .lenient import read_leniently
from .reports import AdapterReport, ExtraReport, Inspection, SiteReport, Spread, Totals

if TYPE_CHECKING:
    from torch import Tensor

    from .numbers import NotFinite, SiteNumbers

IN_FLIGHT = 64 << 20
"""Bytes of factors and of work on them that are in memory at any time."""

_NO_ALPHA = ("numbered", "mlx")
"""Layouts whose files hold a scale, or none, but no alpha."""


Observe = Callable[[str, int, int], None]
"""Called after every site: its name, 1 (0 for a tensor that is no site), bytes read."""


def inspect(
    references: Sequence[str],
    place: Path,
    *,
    weights: bool = True,
    workers: int | None = None,
    planned: Callable[[int], None] = lambda sites: None,
    observe: Observe = lambda name, sites, nbytes: None,
) -> Inspection:
    """Look at adapters, local ones relative to `place`; what is wrong with one stands in its report and is never raised.

    `weights` False reads headers only and imports no torch (but for `.bin` files). `planned` is told the number of sites.
    """
    labels = name_apart(references)
    with ThreadPoolExecutor(max_workers=4) as pool:
        sources = list(pool.map(lambda one: _found(one, place), references))
    opened = [_open(*each) for each in zip(references, labels, sources, strict=True)]
    adapters = [one.adapter for one in opened if one.adapter]
    reports = [one.report for one in opened]
    if weights:
        planned(sum(len(adapter.sites) for adapter in adapters))
        reports = _with_numbers(opened, workers or available_cores(), observe)
    return Inspection(tuple(reports), tuple(compare(adapters)))


def name_apart(references: Sequence[str]) -> list[str]:
    """A short, distinct name for every reference: its last part, the whole where that repeats, numbered where that does."""
    references = [printable(one) for one in references]
    short = [one.rstrip("/").rpartition("/")[2] or one for one in references]
    counts = Counter(short)
    names: list[str] = []
    for brief, whole in zip(short, references, strict=True):
        name = brief if counts[brief] == 1 else whole
        repeats = sum(whole == other for other in references[: len(names)])
        names.append(f"{name} ({repeats + 1})" if repeats else name)
    return names


# --- headers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    report: AdapterReport
    adapter: Adapter | None = None


def _found(reference: str, place: Path) -> Source | RmkitError:
    try:
        return resolve(reference, place)
    except RmkitError as error:
        return error


def _open(reference: str, label: str, source: Source | RmkitError) -> _Opened:
    if isinstance(source, RmkitError):
        return _Opened(AdapterReport(printable(reference), label, source))
    try:
        adapter, remarks = read_leniently(source, label)
    except RmkitError as error:
        return _Opened(AdapterReport(reference, label, error))
    sites = adapter.sites.values()
    alphas = None
    if adapter.layout not in _NO_ALPHA:
        root = bool(adapter.config.get("use_rslora"))
        # alpha is recovered from the scale, so that patterns and per-module alphas of every layout are counted
        alphas = tuple(sorted({float(f"{site.scale * site.rank ** (0.5 if root else 1):.9g}") for site in sites}))
    report = AdapterReport(
        reference=reference,
        label=label,
        source=adapter.source,
        layout=adapter.layout,
        base=adapter.base,
        ranks=tuple(sorted({site.rank for site in sites})),
        alphas=alphas,
        scales=tuple(sorted({site.scale for site in sites})),
        targets=_targets(list(adapter.sites)),
        dtypes=tuple(sorted({ref.spec.dtype for site in sites for ref in (site.a, site.b)})),
        sites=tuple(_site(name, site) for name, site in adapter.sites.items()),
        extras=tuple(ExtraReport(name, extra.kind, extra.ref.spec) for name, extra in adapter.extras.items()),
        warnings=(*remarks, *adapter.notes, *_settings(adapter)),
    )
    return _Opened(report, adapter)


def _settings(adapter: Adapter) -> list[str]:
    """Settings that are merged right but that a reader of the numbers should know of."""
    config = adapter.config
    found: list[str] = []
    init = config.get("init_lora_weights")
    if isinstance(init, str):
        found.append(f"init scheme: {init}")
    if config.get("use_rslora"):
        found.append("rsLoRA: the scale is alpha / sqrt(rank)")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key)
        if isinstance(pattern, Mapping) and pattern:
            shown = ", ".join(f"{name}: {value}" for name, value in list(pattern.items())[:3])
            found.append(f"{key} ({shown}{', ...' if len(pattern) > 3 else ''})")
    magnitudes = sum(site.magnitude is not None for site in adapter.sites.values())
    if magnitudes:
        found.append(f"DoRA: {magnitudes} sites have a magnitude too, a merge needs base_model; figures are of B A alone")
    if any(site.initial for site in adapter.sites.values()):
        found.append("a merge needs base_model; figures are of B A alone")
    if all(site.scale == 0 for site in adapter.sites.values()):
        found.append("alpha is 0: it contributes nothing")
    return found


def _site(name: str, site: SiteFactors) -> SiteReport:
    parameters = site.a.spec.numel + site.b.spec.numel
    return SiteReport(name, site.kind, site.d_out, site.d_in, site.rank, site.scale, parameters, site.experts)


def _targets(names: Sequence[str]) -> dict[str, int]:
    """Sites counted by kind of module: the last part of the name, or as many parts as it takes to tell kinds apart."""
    kinds = Counter(re.sub(r"(?<![A-Za-z0-9])\d+", "*", name) for name in names)
    found: dict[str, int] = {}
    for kind, count in kinds.items():
        parts = kind.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts)))
        alone = (end for end in endings if not any(other != kind and f".{other}".endswith(f".{end}") for other in kinds))
        short = next(alone, kind)
        found["numbered" if short == "*" else short] = count
    return found


# --- weights ----------------------------------------------------------------------------------------------------------

_Job = tuple[int, str, SiteFactors | Extra]
_Loaded = tuple["Tensor", ...] | RmkitError
_Measured = tuple["SiteNumbers | None", "dict[str, NotFinite]"] | RmkitError


def _with_numbers(opened: Sequence[_Opened], workers: int, observe: Observe) -> list[AdapterReport]:
    """The reports with figures; sites stream by, several at a time, one thread each."""
    import torch

    from .numbers import measure, not_finite

    jobs: list[_Job] = []
    for index, one in enumerate(opened):
        if one.adapter:
            jobs.extend((index, name, site) for name, site in one.adapter.sites.items())
            jobs.extend((index, name, extra) for name, extra in one.adapter.extras.items())
    results: dict[tuple[int, str, bool], _Measured] = {}

    def load(job: _Job) -> _Loaded:
        try:
            what = job[2]
            if not isinstance(what, SiteFactors):
                return (what.ref.read(),)
            return (*what.read(), what.magnitude.read()) if what.magnitude else what.read()
        except RmkitError as error:
            return error

    def work(job: _Job, loaded: _Loaded) -> _Measured:
        if isinstance(loaded, RmkitError):
            return loaded
        _, _, what = job
        numbers = measure(loaded[0], loaded[1], what.scale) if isinstance(what, SiteFactors) else None
        refs = what.refs if isinstance(what, SiteFactors) else (what.ref,)
        # figures exist only of factors that are finite
        doubtful = list(zip(refs, loaded, strict=True))[2 if numbers else 0 :]
        return numbers, {ref.spec.name: found for ref, tensor in doubtful if (found := not_finite(tensor))}

    def store(job: _Job, result: _Measured) -> None:
        index, name, what = job
        is_site = isinstance(what, SiteFactors)
        results[index, name, is_site] = result
        observe(name, int(is_site), what.nbytes if isinstance(what, SiteFactors) else what.ref.spec.nbytes)

    flow = Flow(cost=_cost, load=load, work=work, store=store, workers=workers, limit=IN_FLIGHT)
    flow.run(jobs, enter_worker=lambda: torch.set_num_threads(1))
    return [_complete(index, one, results) for index, one in enumerate(opened)]


def _cost(job: _Job) -> int:
    """Bytes in memory: as stored, and for a site the copy in float64 beside it."""
    what = job[2]
    if isinstance(what, SiteFactors):
        return what.nbytes + 8 * (what.a.spec.numel + what.b.spec.numel)
    return what.ref.spec.nbytes


def _complete(index: int, one: _Opened, results: Mapping[tuple[int, str, bool], _Measured]) -> AdapterReport:
    report = one.report
    if report.error:
        return report
    sites: list[SiteReport] = []
    bad: dict[str, NotFinite] = {}
    for name, is_site in [*((s.name, True) for s in report.sites), *((e.name, False) for e in report.extras)]:
        result = results[index, name, is_site]
        if isinstance(result, RmkitError):
            return AdapterReport(report.reference, report.label, result)
        numbers, found = result
        bad |= found
        if is_site:
            sites.append(replace(report.sites[len(sites)], numbers=numbers))
    totals = _total(sites)
    warnings = (*report.warnings, *_remarks(sites, bad, totals))
    return replace(report, sites=tuple(sites), not_finite=bad, totals=totals, warnings=warnings)


def _total(sites: Sequence[SiteReport]) -> Totals:
    known = [site.numbers for site in sites if site.numbers]
    return Totals(
        norm=sum(n.norm**2 for n in known) ** 0.5,
        effective_rank=Spread.of(n.effective_rank for n in known if n.norm),
        singular=Spread.of(s for n in known for s in n.singular_values),
        zero_rows_a=sum(n.zero_rows_a for n in known),
        zero_columns_b=sum(n.zero_columns_b for n in known),
        dead=sum(n.dead for n in known),
        zero_sites=sum(not n.norm for n in known),
        gauge=Spread.of(n.gauge for n in known if n.gauge is not None),
    )


def _remarks(sites: Sequence[SiteReport], bad: Mapping[str, NotFinite], totals: Totals) -> list[str]:
    found: list[str] = []
    for name, counts in list(bad.items())[:3]:
        found.append(f"tensor {name} holds {counts.nan} NaN and {counts.inf} infinite values; a merge refuses it")
    if len(bad) > 3:
        found.append(f"{len(bad) - 3} more tensors hold NaN or infinity")
    left_out = sum(site.numbers is None for site in sites)
    if left_out:
        found.append(f"the figures leave out {left_out} of {len(sites)} sites, which are not finite or too large for them")
    still = [site for site in sites if site.numbers and not site.numbers.norm]
    if still and len(still) == len(sites):
        untrained = all(s.numbers and s.numbers.zero_columns_b == s.rank * s.experts for s in sites)
        why = "every B is zero" if untrained else "every update is zero"
        found.append(f"untrained: {why}, contributes nothing")
    elif still:
        found.append(f"{totals.zero_sites} of {len(sites)} sites have a zero update (first {still[0].name})")
    return found

"""Adapters of one base, brought to the same module names, or refused because they are not of one base."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from ..errors import InputError
from .adapter import Adapter, SiteFactors

_FAMILY = {"peft": "module paths", "llava": "module paths", "mlx": "module paths"}
"""Layouts that name modules alike; every other layout is a family of its own."""


def align(adapters: Sequence[Adapter]) -> tuple[list[Adapter], list[str]]:
    """The adapters under common module names, and remarks on how they differ.

    Exact names first. An adapter that shares no name with the others is rewritten by ONE change of prefix that maps it onto
    them with fitting shapes, if there is exactly one best. Sites that only some adapters have are the plan's business.
    Raises: InputError for layouts that do not mix, for no common module, and for shapes that differ on one module.
    """
    if not adapters:
        return [], []
    _refuse_mixed_layouts(adapters)
    notes = [*_compare_files(adapters), *_compare_bases(adapters)]
    aligned, renamed = _align_names(adapters)
    aligned, turned = _align_axes(aligned)
    _compare_shapes(aligned)
    return aligned, [*notes, *renamed, *turned]


def base_name(base: str) -> str:
    """Last component of a base's path or repository, without the suffix of a quantised re-upload."""
    last = re.split(r"[/\\]", base.strip().rstrip("/\\"))[-1]
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", last)


def _refuse_mixed_layouts(adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    for other in adapters[1:]:
        if _FAMILY.get(other.layout, other.layout) != _FAMILY.get(first.layout, first.layout):
            raise InputError(
                f"{first.label} has the layout {first.layout}, {other.label} {other.layout}; these do not name modules alike",
                where=other.label,
                hint="convert them to one layout first",
            )


def _compare_files(adapters: Sequence[Adapter]) -> list[str]:
    notes: list[str] = []
    seen: dict[tuple[str, ...], int] = {}
    for index, adapter in enumerate(adapters, 1):
        weights = sorted(str(path.resolve()) for path in adapter.files if path.suffix != ".json")
        key = (*weights, min((site.a.spec.name for site in adapter.sites.values()), default=""))
        if key in seen:
            notes.append(
                f"input {index} ({adapter.label}) equals input {seen[key]} ({adapters[seen[key] - 1].label}): the same file"
            )
        seen.setdefault(key, index)
    return notes


def _compare_bases(adapters: Sequence[Adapter]) -> list[str]:
    notes: list[str] = []
    spelled: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for adapter in adapters:
        if adapter.base is not None:
            spelled[base_name(adapter.base).lower()][adapter.base].append(adapter.label)
    if len(spelled) > 1:
        each = "; ".join(f"{next(iter(names))} ({', '.join(chain(*names.values()))})" for names in spelled.values())
        notes.append(f"the adapters name different bases: {each}")
    notes.extend(f"taken as the same base: {', '.join(names)}" for names in spelled.values() if len(names) > 1)
    named = {str(adapter.config.get("revision") or ""): adapter.label for adapter in adapters}
    revisions = {revision: label for revision, label in named.items() if revision}
    if len(revisions) > 1:
        notes.append(f"revisions of the base differ: {', '.join(f'{r} ({label})' for r, label in revisions.items())}")
    return notes


def _align_names(adapters: Sequence[Adapter]) -> tuple[list[Adapter], list[str]]:
    aligned = list(adapters)
    known: dict[str, SiteFactors] = dict(adapters[0].sites)
    waiting = list(range(1, len(adapters)))
    while True:
        joined = [index for index in waiting if not known.keys().isdisjoint(aligned[index].sites)]
        if not joined:
            break
        for index in joined:
            known = {**aligned[index].sites, **known}
        waiting = [index for index in waiting if index not in joined]
    notes: list[str] = []
    reference = adapters[0]
    for index in waiting:
        aligned[index], note = _rewrite(aligned[index], reference, known)
        known = {**aligned[index].sites, **known}
        notes.append(note)
    return aligned, notes


@dataclass(frozen=True)
class _Rewriting:
    old: str
    new: str
    suffix: int
    covered: int

    def apply(self, name: str) -> str:
        return self.new + name.removeprefix(self.old)

    def __str__(self) -> str:
        return f"{self.old}* -> {self.new}*"


def _rewrite(adapter: Adapter, reference: Adapter, known: Mapping[str, SiteFactors]) -> tuple[Adapter, str]:
    candidates = sorted(_rewritings(adapter.sites, known), key=lambda c: (c.covered, c.suffix), reverse=True)
    enough = min(len(adapter.sites), len(known))
    total = [c for c in candidates if c.covered >= enough]
    best = [c for c in total if (c.covered, c.suffix) == (total[0].covered, total[0].suffix)]
    some, other = next(iter(adapter.sites)), next(iter(reference.sites))
    if len(best) != 1:
        offers = "; ".join(f"{c} ({c.covered} of {len(adapter.sites)})" for c in candidates[:3])
        why = f"; prefixes tried: {offers}" if offers else ""
        raise InputError(
            f"inputs share no module: {adapter.label} has {some}, {reference.label} has {other}{why}",
            where=adapter.label,
            hint="they belong to different bases; if not, give `rename: {from: to}` on the adapter entry",
        )
    change = best[0]
    sites = {change.apply(name): site for name, site in adapter.sites.items()}
    extras = {}
    for name, extra in adapter.extras.items():
        moved = change.apply(name) if name.startswith(change.old) else name
        extras[moved if change.old or moved in reference.extras else name] = extra
    note = f"{adapter.label}: modules {change} ({change.covered} of {len(sites)} are modules of the other inputs)"
    return replace(adapter, sites=sites, extras=extras), note


def _rewritings(sites: Mapping[str, SiteFactors], known: Mapping[str, SiteFactors]) -> list[_Rewriting]:
    """Changes of prefix that apply to all sites and bring some of them, none misfitting, onto known ones."""
    by_leaf: dict[str, list[str]] = defaultdict(list)
    for name in known:
        by_leaf[name.rpartition(".")[2]].append(name)
    samples = {name.rpartition(".")[2]: name for name in reversed(list(sites))}
    pairs = {_prefixes(mine, theirs) for leaf, mine in samples.items() for theirs in by_leaf.get(leaf, ())}
    found: list[_Rewriting] = []
    for old, new, suffix in pairs:
        if not all(name.startswith(old) for name in sites):
            continue
        covered = 0
        for name, site in sites.items():
            theirs = known.get(new + name.removeprefix(old))
            if theirs is not None:
                if _shape(theirs) != _shape(site):
                    break
                covered += 1
        else:
            if covered:
                found.append(_Rewriting(old, new, suffix, covered))
    return found


def _prefixes(mine: str, theirs: str) -> tuple[str, str, int]:
    """What differs before the longest common dotted suffix of two names, and the length of that suffix."""
    left, right = mine.split("."), theirs.split(".")
    common = 0
    while common < min(len(left), len(right)) and left[-1 - common] == right[-1 - common]:
        common += 1
    old, new = (".".join(parts[: len(parts) - common]) for parts in (left, right))
    return old and f"{old}.", new and f"{new}.", common


def _shape(site: SiteFactors) -> tuple[int, ...]:
    return (*((site.experts,) if site.kind == "experts" else ()), site.d_out, *site.kernel)


def _align_axes(adapters: Sequence[Adapter]) -> tuple[list[Adapter], list[str]]:
    """Fused experts seen with the axes the first adapter has: PEFT changed which axis A reads."""
    first: dict[str, SiteFactors] = {}
    aligned: list[Adapter] = []
    notes: list[str] = []
    for adapter in adapters:
        sites = dict(adapter.sites)
        for name, site in adapter.sites.items():
            if site.kind == "experts" and _crosswise(first.setdefault(name, site), site):
                sites[name] = site.flip()
        count = sum(sites[name] is not site for name, site in adapter.sites.items())
        if count:
            notes.append(
                f"{adapter.label}: {count} fused expert parameters were trained with A and B the other way round than in "
                f"{adapters[0].label}; they are transposed, which changes no update"
            )
        aligned.append(replace(adapter, sites=sites) if count else adapter)
    return aligned, notes


def _crosswise(known: SiteFactors, site: SiteFactors) -> bool:
    if known.d_out != known.d_in:
        return (known.d_out, known.d_in) == (site.d_in, site.d_out)
    return known.d_out == site.d_out and known.d_in == site.d_in and known.axes != site.axes


def _compare_shapes(adapters: Sequence[Adapter]) -> None:
    first: dict[str, tuple[Adapter, SiteFactors]] = {}
    differ: list[tuple[str, Adapter, SiteFactors, Adapter, SiteFactors]] = []
    for adapter in adapters:
        for name, site in adapter.sites.items():
            owner, known = first.get(name) or first.setdefault(name, (adapter, site))
            if known is not site and _shape(known) != _shape(site):
                differ.append((name, owner, known, adapter, site))
    if differ:
        name, owner, known, adapter, site = differ[0]
        more = f" ({len({entry[0] for entry in differ})} modules differ)" if len(differ) > 1 else ""
        raise InputError(
            f"module {name}: [out, in] is {list(_shape(known))} in {owner.label} and {list(_shape(site))} in {adapter.label}"
            f"{more}: different base models?",
            where=adapter.label,
            hint="merge only adapters of one base",
        )

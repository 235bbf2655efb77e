"""The paper's studies as lines of settings around the chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .settings import Setting
from .train_order import Wanted

VARIANTS = ("official", "paper")
OTHERS = ("task_arithmetic", "ties", "tsv_m")
FIRST = Wanted("").group


@dataclass(frozen=True)
class Line:
    """One line of a study: words for it, a setting, and the adapters it merges."""

    words: str
    setting: Setting
    group: str = FIRST
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A study: what is asked and the lines that answer it."""

    title: str
    lines: tuple[Line, ...]


def studies(chosen: Mapping[str, Setting], seen: Sequence[str]) -> list[Question]:
    """Every study there are chosen settings for."""
    robust = {name: chosen[f"robustmerge {name}"] for name in VARIANTS if f"robustmerge {name}" in chosen}
    others = {name: chosen[name] for name in OTHERS if name in chosen}

    def of_variants(title: str, lines: Callable[[str, Setting], list[Line]]) -> Question:
        return Question(title, tuple(line for name, setting in robust.items() for line in lines(name, setting)))

    return [
        of_variants("Components", lambda name, setting: _components(name, setting, len(seen))),
        of_variants("Scaling", _scaling),
        of_variants("Clamp", _clamps),
        of_variants("Pruning rate", _rates),
        of_variants("Pruning criterion", _criteria),
        Question("Number of tasks", tuple(_counts({**robust, **others}, seen))),
        Question("Rank", tuple(_ranks({**robust, **others}))),
    ]


def _with(setting: Setting, **parameters: Any) -> Setting:
    return replace(setting, parameters={**setting.parameters, **parameters})


def _pruned(setting: Setting) -> Setting:
    """Pruning switched on: a chosen density of 1 prunes nothing, and nothing could be said about it."""
    return setting if setting.parameters.get("density", 0.2) < 1 else _with(setting, density=0.2)


def _components(name: str, setting: Setting, count: int) -> list[Line]:
    whole, gain = _pruned(setting), setting.parameters.get("gain", 2.0)
    # Normalised scales add up to one over the tasks; without, the same size takes a gain smaller by their number. The official
    # variant has its gain in both factors.
    smaller = gain / (count**0.5 if name == "official" else count)
    return [
        Line(f"{name}: all", whole),
        Line(f"{name}: without pruning", _with(whole, prune=False)),
        Line(f"{name}: without scaling", _with(whole, scaling="none")),
        Line(f"{name}: without normalisation, gain {smaller:.2g}", _with(whole, normalize=False, gain=smaller)),
    ]


def _scaling(name: str, setting: Setting) -> list[Line]:
    return [Line(f"{name}: {kind}", _with(_pruned(setting), scaling=kind)) for kind in ("none", "A", "B", "A+B", "inter")]


def _clamps(name: str, setting: Setting) -> list[Line]:
    return [
        Line(f"{name}: {'clamped' if clamp else 'not clamped'}", _with(_pruned(setting), clamp=clamp))
        for clamp in (True, False)
    ]


def _rates(name: str, setting: Setting) -> list[Line]:
    rates = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    return [Line(f"{name}: density {density}", _with(setting, density=density)) for density in rates]


def _criteria(name: str, setting: Setting) -> list[Line]:
    return [Line(f"{name}: {kind}", _with(_pruned(setting), criterion=kind)) for kind in ("magnitude", "random", "sign")]


def _counts(chosen: Mapping[str, Setting], seen: Sequence[str]) -> list[Line]:
    counts = [count for count in (2, 4, 6, 8) if count <= len(seen)]
    return [
        Line(f"{name}: {count} tasks", setting, names=tuple(seen[:count]) if count < len(seen) else ())
        for name, setting in chosen.items()
        for count in counts
    ]


def _ranks(chosen: Mapping[str, Setting]) -> list[Line]:
    groups = [(rank, Wanted("", rank=rank).group) for rank in (4, 16, 64)]
    return [Line(f"{name}: rank {rank}", setting, group) for name, setting in chosen.items() for rank, group in groups]

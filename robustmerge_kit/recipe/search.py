"""What a sweep draws for every trial, and the recipe's data with it; all of it checked against the recipe it varies.

An axis is one number or one choice; a gradient to be searched is an axis for each of its points. A trial draws what its methods
can use: a parameter that the chosen method does not have is left out, and so is one that the recipe itself sets.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from ..errors import RmkitError
from .parameters import WEIGHT
from .problems import Problems, nearest, show
from .sweep import MOST_TRIALS, Range, Sweep
from .values import method_named
from .ways import check_name, put, way
from .yaml_text import Path

Read = Callable[[dict[str, Any], Problems], object]
"""Checks a recipe's data, and notes what is wrong with it."""

MOST = 1e15
MOST_STEPS = 1_000_000
MOST_CONTEXTS = 256
"""Combinations of methods in which a parameter is looked for."""

_FIXED = ("sweep", "extends", "vars", "name", "meta", "output")
_IN_OUTPUT = (("output", "rank"), ("output", "dtype"))
"""Keys of `output` that change what is merged."""


@dataclass(frozen=True)
class Axis:
    """One thing a trial draws. `name` is what it is called in a study, `path` where it goes, `source` where it is written.

    choices: its values as written; none: the numbers from low to high, in steps, on a logarithmic scale, whole.
    """

    name: str
    path: Path
    source: Path
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def labels(self) -> list[str | int | float | bool]:
        """The choices as a study holds them: scalars as they are, everything else as JSON."""
        return [each if isinstance(each, str | int | float) else json.dumps(each) for each in self.choices]

    def value(self, drawn: Any) -> Any:
        """What goes into the recipe for what a study holds."""
        if not self.choices:
            return int(drawn) if self.whole else float(drawn) if self.step is None else round(float(drawn), 12)
        return self.choices[self.labels.index(drawn)]

    def place(self, drawn: Any) -> Path:
        """Where a value stands in the recipe's text."""
        return (*self.source, self.labels.index(drawn)) if self.choices else self.source

    def steps(self) -> list[Any] | None:
        """All values in order; None for a range without steps."""
        if self.choices:
            return self.labels
        if self.low == self.high:
            return [self.value(self.low)]
        if self.step is None:
            return None
        return [self.value(self.low + k * self.step) for k in range(round((self.high - self.low) / self.step) + 1)]

    def samples(self) -> list[Any]:
        """The values that are checked beforehand: all choices, or both ends."""
        return self.labels if self.choices else list(dict.fromkeys((self.value(self.low), self.value(self.high))))


@dataclass(frozen=True)
class Search:
    """What the trials of a sweep draw. `gradients`: lists whose points are axes, with what is fixed in them."""

    axes: tuple[Axis, ...]
    gradients: Mapping[Path, Sequence[Any]]

    def fits(self, data: Mapping[str, Any], drawn: Mapping[str, Any], axis: Axis) -> bool:
        """Whether a trial that has drawn its methods also draws this."""
        owner = _owner(axis.path)
        if owner is None:
            return True
        key, place = owner
        methods = _methods(self._with_methods(data, drawn), place)
        if key == "space":
            return any(method_named(method).spaces for method in methods)
        return any(key in method_named(method).params.model_fields for method in methods)

    @property
    def methods(self) -> list[Axis]:
        """The axes that choose methods, which are drawn first."""
        return [axis for axis in self.axes if axis.path[-1] == "merge_method"]

    @property
    def others(self) -> list[Axis]:
        """All further axes, in the order of the recipe."""
        return [axis for axis in self.axes if axis.path[-1] != "merge_method"]

    def rooted(self, axis: Axis) -> Path:
        """Where an axis goes in the recipe as it is written: a point of a gradient where the whole gradient goes."""
        return axis.path[:-1] if axis.path[:-1] in self.gradients else axis.path

    def assemble(self, data: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's data with the values drawn, without the sweep."""
        found = copy.deepcopy({key: value for key, value in data.items() if key != "sweep"})
        axes = [axis for axis in self.axes if axis.name in drawn]
        for path, points in self.gradients.items():
            if any(axis.path[:-1] == path for axis in axes):
                put(found, path, list(points))
        for axis in axes:
            put(found, axis.path, copy.deepcopy(axis.value(drawn[axis.name])))
        if self.methods:
            _leave_out(found, self._possible(data))
        return found

    def contexts(self, data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Every combination of methods with the first value of everything else that fits it."""
        chosen = itertools.product(*(axis.labels for axis in self.methods))
        for labels in itertools.islice(chosen, MOST_CONTEXTS):
            drawn = {axis.name: label for axis, label in zip(self.methods, labels, strict=True)}
            firsts = {axis.name: axis.samples()[0] for axis in self.others if self.fits(data, drawn, axis)}
            yield {**drawn, **firsts}

    def _with_methods(self, data: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
        found = copy.deepcopy({key: data[key] for key in ("merge_method", "overrides") if key in data})
        for axis in self.methods:
            if axis.name in drawn:
                put(found, axis.path, axis.value(drawn[axis.name]))
        return found

    def _possible(self, data: Mapping[str, Any]) -> set[str]:
        """The names of parameters that any method of the sweep has."""
        methods = {method for axis in self.methods for method in axis.choices} | set(_all_methods(data))
        return {name for method in methods for name in method_named(method).params.model_fields}


def plan_search(sweep: Sweep, data: Mapping[str, Any], problems: Problems, read: Read) -> Search | None:
    """What a sweep draws from a recipe that is right by itself; None when `problems` say what is wrong.

    Every value is tried in the recipe, so that no trial meets one that its key does not take.
    """
    before = len(problems)
    axes: list[Axis] = []
    gradients: dict[Path, Sequence[Any]] = {}
    for name, dimension in sweep.search.items():
        source: Path = ("sweep", "search", name)
        if not check_name(name, source, problems):
            continue
        path = way(name)
        if path[0] in _FIXED and path[:2] not in _IN_OUTPUT:
            hint = "search keys that change what is merged, as parameters.density, merge_method or output.rank"
            problems.add(source, f"{name} cannot be searched", hint=hint, at_key=True)
        elif isinstance(dimension, Range):
            _add_range(axes, name, path, source, dimension, problems)
        elif any(isinstance(each, dict) and each.keys() & {"low", "high"} for each in dimension):
            gradients[path] = _gradient(axes, name, path, source, dimension, problems)
        else:
            axes.append(Axis(name, path, source, choices=tuple(dimension)))
    _refuse_overlap(axes, gradients, problems)
    if len(problems) > before:
        return None
    search = Search(tuple(axes), gradients)
    _Check(search, data, problems, read).run()
    if len(problems) > before:
        return None
    search = replace(search, axes=tuple(_Check(search, data, problems, read).settled(axis) for axis in axes))
    _check_sampler(sweep, search, problems)
    return search if len(problems) == before else None


def _add_range(axes: list[Axis], name: str, path: Path, source: Path, given: Range, problems: Problems) -> None:
    if max(abs(given.low), abs(given.high)) > MOST:
        problems.add(source, f"{name}: numbers up to {MOST:g} can be searched")
    elif given.step is not None and (given.high - given.low) / given.step > MOST_STEPS:
        problems.add(source, f"{name}: a range has at most {MOST_STEPS} steps")
    elif given.low > given.high:
        problems.add(source, f"{name}: low {given.low:g} is above high {given.high:g}")
    elif given.log and given.step is not None:
        problems.add(source, f"{name}: log and step exclude each other")
    elif given.log and given.low <= 0:
        problems.add(source, f"{name}: a logarithmic range begins above 0, got low {given.low:g}")
    else:
        whole = all(isinstance(each, int) for each in (given.low, given.high, given.step or 1))
        high = given.high
        if given.step is not None:
            high = round(given.low + math.floor((given.high - given.low) / given.step + 1e-9) * given.step, 12)
        axes.append(Axis(name, path, source, (), given.low, high, given.step, given.log, whole))


def _gradient(axes: list[Axis], name: str, path: Path, source: Path, points: list[Any], problems: Problems) -> list[Any]:
    """Axes for the points that are ranges; what is fixed stays."""
    for i, point in enumerate(points):
        place = (*source, i)
        if isinstance(point, dict):
            try:
                found = Range.model_validate(point)
            except ValidationError as error:
                problems.add_invalid(error, point, Range, place)
                continue
            _add_range(axes, f"{name}[{i}]", (*path, i), place, found, problems)
        elif isinstance(point, bool) or not isinstance(point, int | float):
            hint = "a list with ranges is a gradient; a list of other values is a choice"
            problems.add(place, f"a gradient holds ranges and numbers, got {show(point)}", hint=hint)
    return [0.0 if isinstance(point, dict) else point for point in points]


def _refuse_overlap(axes: Sequence[Axis], gradients: Mapping[Path, Sequence[Any]], problems: Problems) -> None:
    places = [(axis.path, axis) for axis in axes]
    for (one, _), (other, axis) in itertools.combinations(places, 2):
        short = min(len(one), len(other))
        if one[:short] == other[:short]:
            problems.add(axis.source, f"{axis.name} is searched twice", hint="keep one of the two", at_key=True)
    for axis in axes:
        labels = axis.labels
        for i, label in enumerate(labels):
            if label in labels[:i]:
                problems.add((*axis.source, i), f"{axis.name} lists {show(axis.choices[i])} twice")


@dataclass(frozen=True)
class _Check:
    """The values of a search, tried in the recipe."""

    search: Search
    data: Mapping[str, Any]
    problems: Problems
    read: Read

    def run(self) -> None:
        """Note every place that the recipe does not have, and every value that its key does not take."""
        for axis in self.search.axes:
            try:
                put(copy.deepcopy(dict(self.data)), self.search.rooted(axis), None)
            except LookupError as found:
                what = f"{axis.name}: the recipe has no such place, but {found}"
                self.problems.add(axis.source, what, at_key=isinstance(axis.source[-1], str))
        for axis in self.search.methods:
            for i, name in enumerate(axis.choices):
                try:
                    method_named(str(name))
                except RmkitError as error:
                    self.problems.add_error((*axis.source, i), error)
        if len(self.problems):
            return
        for axis in self.search.axes:
            context = self.context(axis)
            if context is None:
                self.lacks(axis)
                continue
            for value in axis.samples():
                drawn = {**context, axis.name: value}
                if axis.path[-1] == "merge_method":
                    drawn = next((each for each in self.search.contexts(self.data) if each[axis.name] == value), drawn)
                self.try_out(drawn)

    def context(self, axis: Axis) -> dict[str, Any] | None:
        """A trial that draws this axis."""
        return next((drawn for drawn in self.search.contexts(self.data) if axis.name in drawn), None)

    def lacks(self, axis: Axis) -> None:
        """Note a parameter or space that no method of the sweep has."""
        methods = dict.fromkeys([*_all_methods(self.data), *(str(m) for each in self.search.methods for m in each.choices)])
        key = str(axis.path[-1] if isinstance(axis.path[-1], str) else axis.path[-2])
        if key == "space":
            self.problems.add(axis.source, f"no method of {', '.join(methods)} has spaces", at_key=True)
            return
        known = dict.fromkeys(name for method in methods for name in (*method_named(method).params.model_fields, WEIGHT))
        what = f"no method of {', '.join(methods)} has a parameter {key!r}"
        self.problems.add(axis.source, what, hint=nearest(key, known), at_key=True)

    def try_out(self, drawn: Mapping[str, Any]) -> None:
        """Check the recipe of a trial; a mistake stands where the value is listed."""
        moved = {axis.path: axis.place(drawn[axis.name]) for axis in self.search.axes if axis.name in drawn}
        self.read(self.search.assemble(self.data, drawn), self.problems.elsewhere(moved))

    def settled(self, axis: Axis) -> Axis:
        """A range of whole numbers becomes one of all numbers where its key takes them."""
        if axis.choices or not axis.whole or axis.low == axis.high:
            return axis
        middle = (axis.low + axis.high) / 2
        fraction = middle if middle != int(middle) else middle + 0.5
        trial = Problems(self.problems.document)
        loose = replace(axis, whole=False)
        axes = tuple(loose if each is axis else each for each in self.search.axes)
        context = self.context(axis)
        assert context is not None
        self.read(replace(self.search, axes=axes).assemble(self.data, {**context, axis.name: fraction}), trial)
        return axis if len(trial) else loose


def _check_sampler(sweep: Sweep, search: Search, problems: Problems) -> None:
    """A grid needs steps, everything else an end."""
    if sweep.sampler != "grid":
        if sweep.trials is None:
            problems.add(("sweep",), f"sampler {sweep.sampler} needs the number of trials", hint="add e.g. trials: 50")
        return
    count = 1
    for axis in search.axes:
        steps = axis.steps()
        if steps is None:
            hint = "add step: .., or list the values"
            problems.add(axis.source, f"a grid needs steps, and {axis.name} is a range without", hint=hint)
        count *= len(steps or ())
    if count > MOST_TRIALS:
        hint = "search fewer values, or choose another sampler"
        problems.add(
            ("sweep", "search"), f"the grid has {count} combinations, the limit is {MOST_TRIALS}", hint=hint, at_key=True
        )


def _owner(path: Path) -> tuple[str, Path] | None:
    """The parameter, or `space`, that a path sets, and the override it stands in; None for what suits every method."""
    place = path[:2] if path[0] == "overrides" else ()
    rest = path[len(place) :]
    if rest[:1] == ("space",):
        return "space", place
    if rest[:1] == ("adapters",):
        rest = rest[2:]
    if len(rest) > 1 and rest[0] == "parameters" and rest[1] != WEIGHT:
        return str(rest[1]), place
    return None


def _methods(data: Mapping[str, Any], place: Path) -> list[str]:
    """The methods that see a setting: those of its override, or all."""
    if not place:
        return _all_methods(data)
    overrides = data.get("overrides", [])
    override = overrides[place[1]] if isinstance(place[1], int) and place[1] < len(overrides) else {}
    return [override.get("merge_method", data["merge_method"])]


def _all_methods(data: Mapping[str, Any]) -> list[str]:
    """The methods of a recipe; what is no recipe yet, because a value in it is wrong, may have fewer."""
    overrides = data.get("overrides", [])
    others = [each.get("merge_method") for each in overrides if isinstance(each, dict)] if isinstance(overrides, list) else []
    return [each for each in (data["merge_method"], *others) if isinstance(each, str)]


def _leave_out(data: dict[str, Any], possible: set[str]) -> None:
    """Take away the settings of other methods of the sweep than those chosen."""
    try:
        methods = [method_named(name) for name in _all_methods(data)]
    except RmkitError:
        return  # a searched list of overrides names an unknown one, which is noted when it is read
    known = {name for method in methods for name in method.params.model_fields}
    adapters = data.get("adapters")
    entries = [entry for entry in adapters if isinstance(entry, dict)] if isinstance(adapters, list) else []
    for owner in (data, *entries):
        if isinstance(owner.get("parameters"), dict):
            gone = {name for name in owner["parameters"] if name in possible and name not in known}
            owner["parameters"] = {key: value for key, value in owner["parameters"].items() if key not in gone}
    if not any(method.spaces for method in methods):
        data.pop("space", None)

"""Where sites stand in a picture: one panel per stack of layers, layers along it, modules down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..recipe import stack_name

MOST_MODULES = 48
"""Rows of a panel from which on modules that differ in a number only (experts) share a row."""

_CONTAINER = re.compile(
    r"(?P<path>.*(?:blocks?|layers?|stages?|attentions|resnets)[._][0-9]+)(?:[._](?P<module>.+))?", re.DOTALL
)
_NUMBERED = re.compile(r"(?P<path>(?:.*?[._])?[0-9]+)(?:[._](?P<module>.+))?", re.DOTALL)
_NUMBER = re.compile(r"(?:^|(?<=[._]))[0-9]+(?=[._]|$)")


@dataclass(frozen=True)
class Panel:
    """One stack of layers; its name is empty for the sites outside of any.

    cells: (row, column) -> positions of the sites shown there, more than one where modules share a row.
    """

    name: str
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    cells: dict[tuple[int, int], tuple[int, ...]]


def lay_out(sites: Sequence[str], most_modules: int = MOST_MODULES) -> list[Panel]:
    """Every site's cell, in panels that appear in the order of their first site; what lies outside of all stacks comes last."""
    places = [_place(site) for site in sites]
    stacks = dict.fromkeys(stack for stack, _, _ in places)
    return [_panel(stack, places, most_modules) for stack in sorted(stacks, key=lambda stack: stack == "")]


def _panel(stack: str, places: Sequence[tuple[str, str, str]], most_modules: int) -> Panel:
    here = [(index, layer, module) for index, (own, layer, module) in enumerate(places) if own == stack]
    if len({module for _, _, module in here}) > most_modules:
        here = [(index, layer, _NUMBER.sub("*", module)) for index, layer, module in here]
    layers = sorted({layer for _, layer, _ in here}, key=_numbers)
    modules = list(dict.fromkeys(module for _, _, module in here))
    row, column = {name: i for i, name in enumerate(modules)}, {name: i for i, name in enumerate(layers)}
    cells: dict[tuple[int, int], tuple[int, ...]] = {}
    for index, layer, module in here:
        where = row[module], column[layer]
        cells[where] = (*cells.get(where, ()), index)
    return Panel(stack, tuple(layers), tuple(modules), cells)


def _place(site: str) -> tuple[str, str, str]:
    """Stack, layer and module of a site.

    Layers are counted as a recipe's gradients count them. Names without such a stack (U-Nets, numbered pairs) are split after
    the last numbered container, and every number up to there makes the layer: `down_blocks.0.attentions.1.to_q` is layer `0.1`.
    """
    stack = stack_name(site)
    if stack:
        number, _, module = site[len(stack) + 1 :].partition(".")
        return stack, number, module or stack.rpartition(".")[2]
    found = _CONTAINER.fullmatch(site) or _NUMBERED.fullmatch(site)
    if found is None:
        return "", "", site
    path = found["path"]
    name = _NUMBER.sub("*", path).rstrip("*").rstrip("._")
    return name or "numbered", ".".join(_NUMBER.findall(path)), found["module"] or name or "all"


def _numbers(layer: str) -> list[tuple[int, str]]:
    """A key that sorts by value; a name may hold more digits than `int` takes."""
    return [(len(part.lstrip("0")), part) for part in layer.split(".")]

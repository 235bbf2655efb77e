"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Size(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """A number of bytes: 512MB, 2GiB, 1.5g, 4096."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(value), re.IGNORECASE)
        if match is None or (match[3] and not match[2]):
            self.fail(f"{value!r} is not a size; write e.g. 512MB, 2GiB or 4096", param, ctx)
        unit = match[2].lower()
        size = int(float(match[1]) * (_BINARY[unit] if match[3] else _UNITS[unit]))
        if size <= 0:
            self.fail(f"{value!r} must be more than 0", param, ctx)
        return size


class ShardSize(Size):
    """mergekit's shard size: as Size, and a bare B means billion."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        billion = re.fullmatch(r"\s*(\d+(?:\.\d+)?)b\s*", str(value), re.IGNORECASE)
        return int(float(billion[1]) * 10**9) if billion else super().convert(value, param, ctx)


def recipe_options(command: Command) -> Command:
    """--set, for commands that load recipes with `recipe.load_recipe(reference, recipe.parse_settings(settings))`."""
    help_text = "Give a variable of the recipe's vars another value; may stand several times."
    return click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help=help_text)(command)


def output_options(command: Command) -> Command:
    """--json, --quiet, --debug."""
    for option in (
        click.option("--debug", is_flag=True, help="Show tracebacks."),
        click.option("--quiet", "-q", is_flag=True, help="No progress and no notes."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
    ):
        command = option(command)
    return command

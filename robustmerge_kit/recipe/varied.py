"""One trial of a sweep as a recipe of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .load import parse_recipe
from .schema import Recipe
from .write import as_yaml
from .yaml_text import read_yaml


def vary(recipe: Recipe, drawn: Mapping[str, Any], header: str = "") -> Recipe:
    """The plain recipe that a recipe with a sweep becomes with the values of one trial, below a comment.

    drawn: what the study holds, by name of the axis.

    Raises: what `parse_recipe` raises, for values that are each right and do not go together.
    """
    assert recipe.search is not None, "the recipe has a sweep"
    data = recipe.search.assemble(read_yaml(recipe.text, "recipe").data, drawn)
    path = recipe.place / f"{recipe.origin.stem}.best.yaml"
    return parse_recipe(as_yaml(data, header), path, place=recipe.place)


def plain_data(recipe: Recipe) -> dict[str, Any]:
    """The data of a recipe as it is written, without its sweep."""
    return {key: value for key, value in read_yaml(recipe.text, "recipe").data.items() if key != "sweep"}

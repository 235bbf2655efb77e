"""The recipe room: YAML text -> Recipe, every mistake with its line and column; the only room that reads or writes YAML."""

from .load import load_recipe, parse_recipe
from .schema import AdapterEntry, FirstOf, Recipe, SpaceChoice, Step
from .values import SiteSettings, count_layers, effective_settings, resolve_params, stack_name

__all__ = [
    "AdapterEntry",
    "FirstOf",
    "Recipe",
    "SiteSettings",
    "SpaceChoice",
    "Step",
    "count_layers",
    "effective_settings",
    "load_recipe",
    "parse_recipe",
    "resolve_params",
    "stack_name",
]

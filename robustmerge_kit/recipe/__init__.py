"""The recipe room: YAML text -> Recipe, every mistake with its line and column; the only room that reads or writes YAML."""

from .json_schema import json_schema
from .load import load_recipe, parse_recipe
from .schema import AdapterEntry, BudgetRank, EnergyRank, FirstOf, Output, Override, Recipe, SpaceChoice, Step
from .values import SiteSettings, count_layers, effective_settings, resolve_params, same_everywhere, stack_name
from .write import Answer, Found, starter

__all__ = [
    "AdapterEntry",
    "Answer",
    "BudgetRank",
    "EnergyRank",
    "FirstOf",
    "Found",
    "Output",
    "Override",
    "Recipe",
    "SiteSettings",
    "SpaceChoice",
    "Step",
    "count_layers",
    "effective_settings",
    "json_schema",
    "load_recipe",
    "parse_recipe",
    "resolve_params",
    "same_everywhere",
    "stack_name",
    "starter",
]

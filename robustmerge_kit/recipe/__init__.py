"""The recipe room: YAML text -> Recipe, every mistake with its line and column; the only room that reads or writes YAML."""

from .json_schema import json_schema
from .load import load_recipe, parse_recipe
from .matrix import Variant, expand, parse_variant
from .origin import Origin
from .schema import AdapterEntry, BudgetRank, EnergyRank, FirstOf, Output, Override, Recipe, SpaceChoice, Step
from .search import Axis, Search
from .sweep import CommandEvaluation, PythonEvaluation, Reading, Sweep
from .values import (
    SiteSettings,
    count_layers,
    effective_settings,
    layer_number,
    resolve_params,
    same_everywhere,
    stack_name,
)
from .variables import parse_settings
from .varied import plain_data, vary
from .write import Answer, Found, starter

__all__ = [
    "AdapterEntry",
    "Answer",
    "Axis",
    "BudgetRank",
    "CommandEvaluation",
    "EnergyRank",
    "FirstOf",
    "Found",
    "Origin",
    "Output",
    "Override",
    "PythonEvaluation",
    "Reading",
    "Recipe",
    "Search",
    "SiteSettings",
    "SpaceChoice",
    "Step",
    "Sweep",
    "Variant",
    "count_layers",
    "effective_settings",
    "expand",
    "json_schema",
    "layer_number",
    "load_recipe",
    "parse_recipe",
    "parse_settings",
    "parse_variant",
    "plain_data",
    "resolve_params",
    "same_everywhere",
    "stack_name",
    "starter",
    "vary",
]

"""Adapters of every known layout, read into one form without touching their numbers."""

from .adapter import Adapter, Extra, ExtraKind, Initial, Layout, SiteFactors, SiteKind, read_factors
from .align import align, base_name
from .check import check_values, find_zeros
from .experts import Columns, is_target, pack, registered_order
from .opened import read_json
from .read import read_adapter

__all__ = [
    "Adapter",
    "Columns",
    "Extra",
    "ExtraKind",
    "Initial",
    "Layout",
    "SiteFactors",
    "SiteKind",
    "align",
    "base_name",
    "check_values",
    "find_zeros",
    "is_target",
    "pack",
    "read_adapter",
    "read_factors",
    "read_json",
    "registered_order",
]

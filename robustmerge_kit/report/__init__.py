"""What adapters are and how they go together, as numbers first and text after; imports no torch until weights are read."""

from .document import as_json
from .draft import Draft, draft
from .inspect import inspect
from .reports import AdapterReport, ExtraReport, Inspection, SiteReport, Spread, Totals
from .table import as_text

__all__ = [
    "AdapterReport",
    "Draft",
    "ExtraReport",
    "Inspection",
    "SiteReport",
    "Spread",
    "Totals",
    "as_json",
    "as_text",
    "draft",
    "inspect",
]

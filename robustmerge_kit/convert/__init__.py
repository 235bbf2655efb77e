"""Adapters from one layout into another: `convert(reference, out, wish)`. Start reading in job.py."""

from .job import convert
from .wish import LAYOUTS, Wish

__all__ = ["LAYOUTS", "Wish", "convert"]

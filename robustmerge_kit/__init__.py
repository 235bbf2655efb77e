"""Merge LoRA adapters from a declarative recipe."""

__version__ = "0.1.0"

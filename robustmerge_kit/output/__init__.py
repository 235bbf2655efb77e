"""Where results land: the staged folder, its files, card and receipt."""

from .card import write_card
from .files import AdapterFiles
from .folder import check_free, staged
from .receipt import Receipt, describe, summary

__all__ = ["AdapterFiles", "Receipt", "check_free", "describe", "staged", "summary", "write_card"]

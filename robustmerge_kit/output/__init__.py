"""Where results land: the staged folder, its files, card and receipt."""

from .card import PICTURE, write_card
from .files import AdapterFiles
from .folder import check_free, clear_leftovers, staged, unfinished_bytes
from .journal import Journal
from .model import ModelFiles
from .picture import picture
from .receipt import Receipt, describe
from .summary import summary
from .tensor_files import write_bytes, write_json

__all__ = [
    "PICTURE",
    "AdapterFiles",
    "Journal",
    "ModelFiles",
    "Receipt",
    "check_free",
    "clear_leftovers",
    "describe",
    "picture",
    "staged",
    "summary",
    "unfinished_bytes",
    "write_bytes",
    "write_card",
    "write_json",
]

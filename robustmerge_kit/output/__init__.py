"""Where results land: the staged folder, its files, card and receipt."""

from .card import PICTURE, write_card
from .files import AdapterFiles
from .folder import check_free, clear_leftovers, staged, unfinished_bytes, unfinished_stage
from .journal import Journal, conclusion, journal_file, remove_journals
from .model import ModelWeights, clear_around, write_around
from .picture import picture
from .receipt import Receipt, describe
from .summary import summary
from .tensor_files import write_bytes, write_json

__all__ = [
    "PICTURE",
    "AdapterFiles",
    "Journal",
    "ModelWeights",
    "Receipt",
    "check_free",
    "clear_around",
    "clear_leftovers",
    "conclusion",
    "describe",
    "journal_file",
    "picture",
    "remove_journals",
    "staged",
    "summary",
    "unfinished_bytes",
    "unfinished_stage",
    "write_around",
    "write_bytes",
    "write_card",
    "write_json",
]

"""Outputs against their receipts: hashes of files, and numbers computed once more by other means than the merge's."""

from .document import as_json, as_text
from .records import Check, Finding, Report
from .run import SAMPLES, verify

__all__ = ["SAMPLES", "Check", "Finding", "Report", "as_json", "as_text", "verify"]

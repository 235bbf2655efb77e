"""What a recipe's adapters do to each other and what a merge does to them: figures, a verdict, a report.

Start at `run.analyze`: sites stream through `at_site.look`, `totals.total` adds them up, `verdict.verdict` judges.
"""

from .comparison import Candidate, parse_candidates
from .records import Analysis
from .run import analyze
from .text import as_text
from .write import write_report

__all__ = ["Analysis", "Candidate", "analyze", "as_text", "parse_candidates", "write_report"]

"""How two adapters, or two models, differ, site by site and tensor by tensor; imports no torch until weights are read."""

from .compare import diff
from .document import as_json
from .records import Comparison, Difference, Figures, Ranks, Totals
from .table import as_text

__all__ = ["Comparison", "Difference", "Figures", "Ranks", "Totals", "as_json", "as_text", "diff"]

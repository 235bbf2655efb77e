"""`python benchmarks/quality train`, then `evaluate`, then `report`."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(BENCHMARKS), str(BENCHMARKS.parent)]

from quality.command import main  # noqa: E402

if __name__ == "__main__":
    main(sys.argv[1:])

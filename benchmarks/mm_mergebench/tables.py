"""Prints Tables 2 and 3 from what is in a results folder: `python benchmarks/mm_mergebench/tables.py RESULTS`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from mm_mergebench.table import main

    sys.exit(main(sys.argv[1:]))

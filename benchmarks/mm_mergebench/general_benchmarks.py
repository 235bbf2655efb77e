"""POPE, MME and MMBench through lmms-eval: folds an adapter into the base, writes the command line and runs it."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from mm_mergebench.general import main

    sys.exit(main(sys.argv[1:]))

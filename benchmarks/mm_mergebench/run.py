"""The one command: merges, asks, scores and prints Table 2; `--help` lists the flags, docs/mm_mergebench.md explains."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from mm_mergebench.command import main

    sys.exit(main(sys.argv[1:]))

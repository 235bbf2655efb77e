"""`python -m robustmerge_kit` is `rmkit`."""

from .cli import main

main()

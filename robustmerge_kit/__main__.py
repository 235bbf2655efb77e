"""`python -m robustmerge_kit` is `rmkit`."""

from .cli import process

process()

"""From errors to messages and exit codes, for the programs of this folder."""

from __future__ import annotations

import sys
from collections.abc import Callable

from robustmerge_kit.errors import RmkitError, Several


def guarded(action: Callable[[], int]) -> int:
    """The exit code of an action; a failure is told on stderr and has the exit code rmkit has for its kind."""
    try:
        return action()
    except RmkitError as error:
        for part in error.errors if isinstance(error, Several) else (error,):
            print(f"error: {part}", file=sys.stderr)
        return error.exit_code

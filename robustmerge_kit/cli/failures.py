"""From exceptions to messages and exit codes."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from types import FrameType

import click

from ..errors import RmkitError, Several

INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143
BUG = 70


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C, so that staged folders are removed."""


def guarded(command: click.Command, arguments: list[str]) -> int:
    """Run a command and turn whatever happens into its exit code; tracebacks only with --debug.

    With --json stdout holds one JSON document on failures too.
    """
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in arguments

    def failed(code: int, *errors: RmkitError) -> int:
        if "--json" in arguments:
            listing = [{"where": error.where, "what": error.what, "hint": error.hint} for error in errors]
            click.echo(json.dumps({"exit_code": code, "errors": listing}, indent=2))
        return code

    try:
        result = command.main(arguments, prog_name="rmkit", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show(file=sys.stderr)
        what, _, hint = error.format_message().partition("\nhint: ")
        return failed(error.exit_code, RmkitError(what, hint=hint))
    except RmkitError as error:
        if debug:
            traceback.print_exc()
        parts = error.errors if isinstance(error, Several) else (error,)
        for part in parts:
            click.echo(f"error: {part}", err=True)
        if left := _left(error):
            click.echo(left, err=True)
        return failed(error.exit_code, *parts)
    except (KeyboardInterrupt, click.Abort) as stop:
        click.echo(f"interrupted; {_left(stop) or 'nothing was written'}", err=True)
        return failed(INTERRUPTED, RmkitError("interrupted"))
    except _Terminated as stop:
        click.echo(f"terminated; {_left(stop) or 'nothing was written'}", err=True)
        return failed(TERMINATED, RmkitError("terminated"))
    except SystemExit:
        # click leaves this way, with 1, when nobody reads what is printed any more; 1 would say that the answer is no
        return BROKEN_PIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        bug = RmkitError(f"{type(error).__name__}: {error}", where="bug", hint="please report it, with the output of --debug")
        click.echo(str(bug), err=True)
        return failed(BUG, bug)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def _left(error: BaseException) -> str:
    """What a failure left behind, as the room it comes from notes it; click puts an exception of its own around Ctrl-C."""
    return "; ".join(getattr(error, "__notes__", ()) or getattr(error.__cause__, "__notes__", ()))

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
TERMINATED = 143
BUG = 70


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C, so that staged folders are removed."""


def guarded(command: click.Command, arguments: list[str]) -> int:
    """Run a command and turn whatever happens into its exit code; tracebacks only with --debug."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in arguments
    try:
        result = command.main(arguments, prog_name="rmkit", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except RmkitError as error:
        if debug:
            traceback.print_exc()
        _report(error, as_json="--json" in arguments)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; nothing was written", err=True)
        return INTERRUPTED
    except _Terminated:
        click.echo("terminated; nothing was written", err=True)
        return TERMINATED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        click.echo(f"bug: {type(error).__name__}: {error}\nhint: please report it, with the output of --debug", err=True)
        return BUG


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def _report(error: RmkitError, as_json: bool) -> None:
    parts = error.errors if isinstance(error, Several) else (error,)
    if as_json:
        listing = [{"where": e.where, "what": e.what, "hint": e.hint} for e in parts]
        click.echo(json.dumps({"exit_code": error.exit_code, "errors": listing}, indent=2))
    for part in parts:
        click.echo(f"error: {part}", err=True)

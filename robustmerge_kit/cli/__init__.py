"""The command line: parse, call the library, print, exit. One file per command family; the only place that prints."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import gc
import importlib
import os
import sys
from collections.abc import Sequence

import click

from .. import __version__
from ..late import defer
from .failures import guarded

COMMANDS = {
    "run": ("run", "Merge: recipe in, adapter out."),
    "batch": ("batch", "Merge many recipes: on one machine, several GPUs, or a Ray cluster."),
    "sweep": ("sweep", "Search a recipe's values for those that score best."),
    "plan": ("plan", "Show what a recipe would do; reads headers only."),
    "validate": ("plan", "Check recipes and their inputs; the exit code says it."),
    "lock": ("lock", "Write down commits, hashes and versions, for `run --locked`."),
    "methods": ("methods", "List the merge methods, or print one method's manual page."),
    "schema": ("methods", "Print the JSON Schema of a recipe, for editors."),
    "init": ("start", "Write a commented recipe for some adapters."),
    "convert": ("convert", "Write an adapter in another layout or file format."),
    "push": ("push", "Upload a finished output to the Hub, with its card."),
    "inspect": ("inspect", "Show what adapters consist of, and what is wrong with them."),
    "analyze": ("analyze", "Show which adapters fight, and what a recipe's merge does to them."),
    "diff": ("diff", "Show how two adapters, or two models, differ."),
    "verify": ("verify", "Compute an output once more, and compare it with its receipt and inputs."),
}
"""Command -> module and one-line help, so that `--help` imports none of them."""


class LazyGroup(click.Group):
    """Imports a command's module when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __name__)
        return getattr(module, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(f"no such command {args[0]!r}" + (f", did you mean {near[0]!r}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rmkit")
def rmkit() -> None:
    """Merge LoRA adapters of one base model, described by a recipe.

    Exit codes: 0 done, 1 the answer is no, 2 command line or recipe, 3 input, 4 plan, 5 output,
    6 plugin, 70 bug, 130 interrupted, 141 output closed early, 143 terminated.
    """


def process() -> None:
    """The `rmkit` command as a process of its own, which ends without taking torch apart object by object.

    That takes a fifth of a second. What is registered first is called last, when nothing else is left to do.
    """
    code: list[int] = []
    atexit.register(_leave, code, os.getpid())
    try:
        main()
    except SystemExit as done:
        code.append(done.code if isinstance(done.code, int) else 0)
        raise


def _leave(code: list[int], own: int) -> None:
    if not code or os.getpid() != own:
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command of rmkit and exit with its code."""
    # Imports make hundreds of thousands of objects that stay; collecting garbage among them is a tenth of a short command.
    gc.disable()
    defer("torch")
    sys.exit(guarded(rmkit, list(sys.argv[1:] if arguments is None else arguments)))

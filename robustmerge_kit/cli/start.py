"""`rmkit init`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from ..errors import OutputError
from .options import output_options


@click.command()
@click.argument("adapters", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; without it the recipe goes to stdout.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@output_options
def init(adapters: tuple[str, ...], output: Path | None, overwrite: bool, as_json: bool, quiet: bool, debug: bool) -> int:
    """Write a commented recipe that merges ADAPTERS with RobustMerge; reads headers only.

    ADAPTERS are folders, files or Hub references org/name[@revision][:subfolder]. Where they differ in a way that would stop
    the merge, the recipe holds an answer and its reason. With -o, paths are relative to the file's folder.
    """
    from ..report import draft

    if output is not None:
        output = output.expanduser()
        _check(output, overwrite)
    drawn = draft(adapters, Path.cwd(), output)
    if output is not None:
        _write(output, drawn.text, overwrite)
    if as_json:
        problem = drawn.problem and {"where": drawn.problem.where, "what": drawn.problem.what, "hint": drawn.problem.hint}
        document = {"path": str(output) if output else None, "recipe": drawn.text, "notes": drawn.notes, "problem": problem}
        click.echo(json.dumps(document, indent=2))
    elif output is None:
        click.echo(drawn.text, nl=False)
    elif not quiet:
        click.echo(f"{output}: written; `rmkit plan {output}` shows what it would do")
    if not quiet:
        for note in drawn.notes:
            click.echo(f"note: {note}", err=True)
    if drawn.problem is None:
        return 0
    click.echo(f"error: the recipe does not plan as it is: {drawn.problem}", err=True)
    return drawn.problem.exit_code


def _check(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError("is a folder", where=str(path), hint="name a file, e.g. recipe.yaml")
    if not path.absolute().parent.is_dir():
        raise OutputError("its folder does not exist", where=str(path), hint=f"mkdir -p {path.parent}")
    if os.path.lexists(path) and not overwrite:
        raise OutputError("exists already", where=str(path), hint="choose another name, or use --overwrite to replace it")


def _write(path: Path, text: str, overwrite: bool) -> None:
    """The whole file or none of it; a link that appeared meanwhile is not followed."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            scratch.write_text(text, encoding="utf-8")
            _check(path, overwrite)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.from_os(error, path) from error

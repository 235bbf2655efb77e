"""`rmkit verify`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import Size, output_options

DIFFERENT = 1
"""Exit code when something is not as it was recorded: the answer is no."""


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--all", "every", is_flag=True, help="Every site and every tensor.")
@click.option(
    "--samples", type=click.IntRange(0), default=None, help="Sites, and other tensors, to compute again.  [default: 16]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses which.")
@click.option(
    "--inputs",
    "place",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder where relative paths of the recorded recipe start.  [default: this one, then those above OUT]",
)
@click.option("-j", "--num-threads", "workers", type=click.IntRange(1), default=None, help="Sites at the same time.")
@click.option("--memory", type=Size(), default="512MB", show_default=True, help="Numbers at hand, at most.")
@click.option("-v", "--verbose", is_flag=True, help="List every site and tensor.")
@output_options
def verify(
    out: Path,
    every: bool,
    samples: int | None,
    seed: int,
    place: Path | None,
    workers: int | None,
    memory: int,
    verbose: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Check OUT, which `rmkit run` made, against its receipt and against its recipe and inputs.

    \b
    1. every file against the receipt's hashes
    2. every input against the receipt's hashes
    3. sampled sites and tensors, or --all, against what the recipe demands, computed in float64 by other
       code than the merge's

    Exit code: 1 when something is off, 3 when an input is missing or was changed, else 0.
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    if every and samples is not None:
        raise click.UsageError("--all and --samples exclude each other")
    if place is not None and not place.is_dir():
        raise click.BadParameter(f"{place} is no folder", param_hint="--inputs")
    from .. import verify as room
    from .progress import Progress

    progress = Progress(quiet, "verifying")
    with progress:
        found = room.verify(
            out,
            samples=None if every else room.SAMPLES if samples is None else samples,
            seed=seed,
            place=place,
            workers=workers,
            memory=memory,
            planned=progress.start,
            observe=progress.step,
        )
    if as_json:
        click.echo(json.dumps(room.as_json(found), indent=2, allow_nan=False))
    else:
        for note in found.notes if not quiet else ():
            click.echo(f"note: {note}", err=True)
        click.echo("\n".join(room.as_text(found, verbose=verbose)))
    return 0 if found.good else DIFFERENT

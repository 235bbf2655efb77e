"""`rmkit diff`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from .options import output_options

DIFFERENT = 1
"""Exit code when the difference is beyond the tolerance: the answer is no."""


def _number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("must be a number", ctx, param)
    return value


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--tolerance", type=click.FloatRange(min=0), callback=_number, help="Largest relative error that is accepted.")
@click.option("--top", type=click.IntRange(0), default=20, show_default=True, help="Rows to show, those that differ most.")
@click.option("--ranks", is_flag=True, help="Of models: count the directions that separate two matrices, up to 64.")
@click.option("-j", "--num-threads", "workers", type=click.IntRange(1), default=None, help="Sites compared at the same time.")
@output_options
def diff(
    a: str,
    b: str,
    tolerance: float | None,
    top: int,
    ranks: bool,
    workers: int | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Show how the adapters A and B, or the models A and B, differ.

    A and B are folders, files or, for adapters, Hub references org/name[@revision][:subfolder]. Sites are compared as updates,
    so formats, scales, ranks and the split into factors may differ.

    \b
    error        relative error ||B - A|| / ||A||, Frobenius norms
    cosine       of the two updates or tensors as vectors
    |B|/|A|      ratio of their norms
    rank         numerical rank of the update in A, in B, and of the difference; of models with --ranks

    Exit code: with --tolerance 1 when the relative error of any site or tensor is larger, or one of them is missing on one
    side; else 0.
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from ..report import difference
    from .progress import Progress

    progress = Progress(quiet, "comparing")
    with progress:
        found = difference.diff(a, b, Path.cwd(), ranks=ranks, workers=workers, planned=progress.start, observe=progress.step)
    if as_json:
        click.echo(json.dumps(difference.as_json(found, tolerance), indent=2, allow_nan=False))
    else:
        for note in found.notes if not quiet else ():
            click.echo(f"note: {note}", err=True)
        click.echo("\n".join(difference.as_text(found, top=top, tolerance=tolerance)))
    return DIFFERENT if tolerance is not None and found.beyond(tolerance) else 0

"""`rmkit inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import output_options

UNUSABLE = 3
"""Exit code when an adapter cannot be used, that of a merge that would meet it."""


@click.command()
@click.argument("adapters", nargs=-1, required=True)
@click.option("--headers", is_flag=True, help="Read headers only: no norms, no spectra, no check for NaN.")
@click.option("-v", "--sites", is_flag=True, help="List every site.")
@output_options
def inspect(adapters: tuple[str, ...], headers: bool, sites: bool, as_json: bool, quiet: bool, debug: bool) -> int:
    """Show what ADAPTERS consist of, and what is wrong with them.

    ADAPTERS are folders, files or Hub references org/name[@revision][:subfolder]. One that cannot be read does not hide the
    others.

    \b
    norm         Frobenius norm of the update, all sites together
    eff. rank    exp of the entropy of a site's singular values; the median over the sites
    largest, median, smallest, ratio
                 of the singular values of all sites that are not zero; largest over smallest
    |B|/|A|      how the update is split between the two factors: 1 is balanced; the median
    zero A, B    rows of A and columns of B that are all zero
    dead         of the rank-one terms B A consists of, those at most a thousandth of their site's largest
    NaN, Inf     values that are not numbers, and infinite ones

    Exit code: 3 when an adapter cannot be read or holds NaN or infinity, else 0.
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from ..report import as_json as document
    from ..report import as_text
    from ..report import inspect as look
    from .progress import Progress

    progress = Progress(quiet, "inspecting")
    with progress:
        found = look(adapters, Path.cwd(), weights=not headers, planned=progress.start, observe=progress.step)
    if as_json:
        click.echo(json.dumps(document(found, sites=sites), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(as_text(found, sites=sites)))
    return 0 if all(report.usable for report in found.adapters) else UNUSABLE

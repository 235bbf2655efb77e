"""`rmkit analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Size, output_options, recipe_options

if TYPE_CHECKING:
    from ..plan import Plan


@click.command()
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for the report: JSON, HTML, pictures.")
@click.option("--overwrite", is_flag=True, help="Replace an existing report folder, once the new one is whole.")
@click.option(
    "--compare",
    multiple=True,
    metavar="METHODS",
    help="Also merge by these methods, comma-separated; settings follow a colon: linear,ties:density=0.2:space=core.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-j", "--num-threads", "workers", type=click.IntRange(1), default=None, help="Sites analysed at the same time.")
@click.option("--memory", type=Size(), default="512MB", show_default=True, help="Tensors in flight, at most.")
@recipe_options
@output_options
def analyze(
    recipe: str,
    out: Path | None,
    overwrite: bool,
    compare: tuple[str, ...],
    device: str,
    workers: int | None,
    memory: int,
    settings: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Show how the adapters of RECIPE get along, and what its merge does to them. Nothing is merged to disk.

    \b
    cosine, signs      of two updates: cosine; share of entries of opposite sign, by chance 50 %
    overlap, angle     of the subspaces they write to (left) and read from (right): 1 and 0 degrees are the same
    shared             share of the first one's energy in the other's directions, and the reverse
    projection         size of an update in the merge; crosstalk: what the others add in its directions
    destroyed          share of an update that no rescaling gives back
    top, rest          its strongest direction, and the mean of the others, in the merge: |cosine| on
                       either side, ratio of the singular values

    All figures are explained in docs/analyze.md.
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from ..output import check_free, staged
    from ..recipe import load_recipe, parse_settings
    from ..report.analysis import analyze as look
    from ..report.analysis import as_text, parse_candidates, write_report
    from ..resources import Resources, available_cores, pick_device, tune_process
    from .progress import Progress

    candidates = parse_candidates(",".join(compare)) if compare else []
    loaded = load_recipe(recipe, parse_settings(settings))
    if out is not None:
        check_free(out, overwrite)
    tune_process()
    resources = Resources(pick_device(device), workers or available_cores(), memory)
    progress = Progress(quiet, "analysing")

    def planned(plan: Plan) -> None:
        for note in plan.notes if not quiet else ():
            click.echo(f"note: {note}", err=True)
        progress.start(len(plan.steps))

    with progress:
        found = look(loaded, candidates, resources=resources, planned=planned, observe=progress.step)
    if not as_json:
        # Before the report is written: figures that took minutes are not lost to a full disk.
        click.echo("\n".join(as_text(found)))
    if out is not None:
        with staged(out, overwrite) as stage:
            written = write_report(found, stage)
        if not quiet and not any(path.suffix == ".png" for path in written):
            click.echo('note: no pictures without matplotlib: pip install "robustmerge-kit[plots]"', err=True)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
    elif out is not None:
        click.echo(f"\nreport: {out}")

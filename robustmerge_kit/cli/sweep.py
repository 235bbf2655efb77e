"""`rmkit sweep`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .options import Size, output_options, recipe_options


@click.command()
@click.argument("recipe")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of study and logs.  [default: RECIPE.sweep beside it]")
@click.option("-j", "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trials at the same time.")
@click.option("--restart", is_flag=True, help="Discard the trials of an earlier run instead of going on after them.")
@click.option("--overwrite", is_flag=True, help="Replace a RECIPE.best.yaml that this sweep did not write.")
@click.option("--keep", is_flag=True, help="Keep the merged folder of every trial.")
@click.option("--plot", type=click.Path(path_type=Path), help="Picture to draw: .png, .svg or .pdf.  [default: in the state]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--num-threads", "workers", type=click.IntRange(1), default=None, help="Sites merged at the same time, per trial."
)
@click.option("--memory", type=Size(), default="512MB", show_default=True, help="Tensors in flight, at most, per trial.")
@recipe_options
@output_options
def sweep(
    recipe: str,
    state: Path | None,
    jobs: int,
    restart: bool,
    overwrite: bool,
    keep: bool,
    plot: Path | None,
    device: str,
    workers: int | None,
    memory: int,
    settings: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Search the values that the `sweep` of RECIPE lists for those that score best.

    Every trial is merged and scored by the recipe's command, Python function, or diagnostics. The same command goes on after
    an interruption. The best recipe is RECIPE.best.yaml, which `rmkit run` takes. All is explained in docs/sweep.md.

    The exit code is 0 when there is a best trial, 1 when none could be scored.
    """
    from ..homes import companion
    from ..recipe import load_recipe, parse_settings

    loaded = load_recipe(recipe, parse_settings(settings))
    from ..report.pictures import can_draw
    from ..resources import Resources, available_cores, pick_device, tune_process
    from ..sweep import Settings, run_sweep
    from ..sweep.plot import check_plot
    from ..sweep.plot import plot as draw
    from ..sweep.table import document, lines, told

    if plot is not None:
        check_plot(plot)
    tune_process()
    place = state or companion(recipe, ".sweep")
    chosen = Settings(
        state=place,
        best=companion(recipe, ".best.yaml"),
        jobs=jobs,
        resources=Resources(pick_device(device), workers or max(1, available_cores() // jobs), memory),
        overwrite=overwrite,
        restart=restart,
        keep=keep,
    )

    def tell(event: str, **fields: Any) -> None:
        if quiet:
            return
        if event == "begin":
            done = f", {fields['trials']} of them done already" if fields["trials"] else ""
            click.echo(f"{fields['most']} trials{done}; study: {place}", err=True)
        else:
            click.echo(told(fields["trial"], fields["best"]), err=True)

    result = run_sweep(loaded, chosen, tell)
    picture = plot or (place / "plot.png" if can_draw() else None)
    if picture is not None and not draw(result, picture):
        picture = None
    if as_json:
        click.echo(json.dumps({**document(result), "plot": str(picture) if picture else None}, indent=2))
    else:
        click.echo("\n".join(lines(result)))
        if picture is not None:
            click.echo(f"plot: {picture}")
        elif not quiet and not can_draw():
            click.echo('note: no plot without matplotlib: pip install "robustmerge-kit[plots]"', err=True)
    return 0 if result.best is not None else 1

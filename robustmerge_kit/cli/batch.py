"""`rmkit batch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .failures import INTERRUPTED, TERMINATED
from .options import Size, output_options, recipe_options

if TYPE_CHECKING:
    from ..batch.run import StartEngine


@click.command()
@click.argument("recipes", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for all results, each by its recipe's name.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that are not what their recipe makes.")
@click.option("--restart", is_flag=True, help="Merge again what is done already.")
@click.option("--check", "only_check", is_flag=True, help="Check all recipes and stop there.")
@click.option("-j", "--jobs", type=click.IntRange(1), default=None, help="Merges at the same time.  [default: one a core]")
@click.option("--memory", type=Size(), default=None, help="Memory for all together.  [default: 80 % of what is available]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda (all GPUs) or a list: cuda:0,cuda:2.")
@click.option("--gpu-memory", type=Size(), default=None, help="Memory to use on each GPU, at most.  [default: 80 % of it]")
@click.option(
    "--split-above", type=Size(), default=None, help="Free workers share folded models of so much.  [default: 256MB, Ray: 1GB]"
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where merges run.")
@click.option("--address", default=None, help="Ray cluster to use.  [default: RAY_ADDRESS, else the one on this machine]")
@click.option(
    "--retries", type=click.IntRange(0), default=2, show_default=True, help="Further attempts after transient faults."
)
@click.option("--fail-fast", is_flag=True, help="Begin nothing more after the first failure.")
@click.option(
    "--grace", type=click.FloatRange(0), default=None, help="Seconds that running merges get after SIGTERM or Ctrl-C."
)
@click.option("--events", type=click.Path(path_type=Path), default=None, help="File to append one JSON object per event to.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path("rmkit-batch"),
    show_default=True,
    help="Folder for logs and summary.",
)
@click.option("--write-model-card/--no-write-model-card", "card", default=True, help="Write README.md beside the weights.")
@recipe_options
@output_options
def batch(
    recipes: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    restart: bool,
    only_check: bool,
    jobs: int | None,
    memory: int | None,
    device: str,
    gpu_memory: int | None,
    split_above: int | None,
    engine: str,
    address: str | None,
    retries: int,
    fail_fast: bool,
    grace: float | None,
    events: Path | None,
    state: Path,
    card: bool,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Merge many RECIPES: files, folders, quoted patterns, or matrices that stand for many recipes.

    Every recipe is checked before the first merge starts; broken ones are reported, the rest run. What is done already is
    skipped, so the same command goes on after an interruption.
    """
    from ..batch import Settings, Signals, lines, run_batch
    from .table import table

    start_engine = _local(jobs, memory, device, gpu_memory)
    if engine == "ray":
        start_engine = _ray(address, jobs, memory, device)
    elif address is not None:
        raise click.UsageError("--address: only with --engine ray")
    variables: dict[str, str] = {}
    if settings:
        from ..recipe import parse_settings

        variables = parse_settings(settings)
    with Signals(grace) as signals, table(quiet, sys.stderr) as tell:
        summary = run_batch(
            recipes,
            start_engine,
            settings=Settings(
                overwrite=overwrite or restart,
                restart=restart,
                card=card,
                retries=retries,
                fail_fast=fail_fast,
                only_check=only_check,
                split_above=split_above,
                folder=Path.cwd() if engine == "ray" else None,
                stopping=signals.stopping,
            ),
            variables=variables,
            out=out,
            state=state,
            events=events,
            tell=tell,
        )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    elif not (quiet and summary["ok"]):
        click.echo("\n".join(lines(summary)))
    if signals.first is not None:
        return TERMINATED if signals.name == "SIGTERM" else INTERRUPTED
    return 0 if summary["ok"] else 1


def _local(jobs: int | None, memory: int | None, device: str, gpu_memory: int | None) -> StartEngine:
    from ..batch import Limits, LocalEngine, available_memory
    from ..resources import available_cores

    limits = Limits(memory or int(0.8 * available_memory()), jobs, device, gpu_memory, available_cores())
    return lambda tasks, logs: LocalEngine(limits, tasks, logs)


def _ray(address: str | None, jobs: int | None, memory: int | None, device: str) -> StartEngine:
    from ..batch.ray_cluster import RayEngine

    return lambda tasks, logs: RayEngine(address, jobs, memory, device, logs / "ray.log")

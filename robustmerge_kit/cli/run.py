"""`rmkit run`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .mergekit_flags import explain, mergekit_flags
from .options import ShardSize, Size, output_options, recipe_options

if TYPE_CHECKING:
    from ..lock import Lock
    from ..plan import Plan
    from ..recipe import Recipe


@click.command()
@click.argument("recipe")
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--overwrite", is_flag=True, help="Replace an existing output folder, once the new one is whole.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:N; a model also on several GPUs: cuda:0,cuda:1 or cuda:all.",
)
@click.option("--cuda/--no-cuda", "cuda", default=None, hidden=True)
@click.option("-j", "--num-threads", "workers", type=click.IntRange(1), default=None, help="Sites merged at the same time.")
@click.option("--memory", type=Size(), default="512MB", show_default=True, help="Tensors in flight, at most.")
@click.option("--gpu-memory", type=Size(), default=None, help="Device memory to use, at most.  [default: 80 % of what is free]")
@click.option("--random-seed", type=int, default=None, help="Seed, when the recipe sets none.")
@click.option("--restart", is_flag=True, help="Do not go on with what an interrupted run of the same recipe left.")
@click.option("--out-shard-size", type=ShardSize(), default=None, help="Bytes of one file of a model.  [default: as the base]")
@click.option("--copy-tokenizer/--no-copy-tokenizer", default=True, help="Copy the base's tokenizer into a model.")
@click.option("--transformers-cache", type=click.Path(path_type=Path), default=None, help="Cache folder for Hub downloads.")
@click.option("--write-model-card/--no-write-model-card", "card", default=True, help="Write README.md beside the weights.")
@click.option("-v", "--verbose", is_flag=True, help="List every note and every site.")
@click.option("--locked", is_flag=True, help="Take what the recipe's lock file says; refuse where anything differs from it.")
@recipe_options
@output_options
@mergekit_flags
def run(
    recipe: str,
    out: Path | None,
    overwrite: bool,
    device: str,
    cuda: bool | None,
    workers: int | None,
    memory: int,
    gpu_memory: int | None,
    random_seed: int | None,
    restart: bool,
    out_shard_size: int | None,
    copy_tokenizer: bool,
    transformers_cache: Path | None,
    card: bool,
    verbose: bool,
    locked: bool,
    settings: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    debug: bool,
    **mergekit: Any,
) -> None:
    """Merge the adapters of RECIPE into the folder OUT.

    RECIPE is a file, org/name[@revision]:path on the Hub, https://.., or git+https://..[@revision]:path.
    Without OUT the recipe's output.path is used, else ./<recipe name>-merged. The folder appears whole or not at all.
    """
    explain(mergekit, quiet)
    if transformers_cache is not None:
        os.environ["HF_HUB_CACHE"] = str(transformers_cache)
    if cuda is not None:
        device = "cuda" if cuda else "cpu"
    from ..recipe import load_recipe, parse_settings

    lock = _lock(recipe) if locked else None
    loaded = _seeded(load_recipe(recipe, parse_settings(settings), lock and lock.commits), random_seed)
    from ..merge import merge
    from ..output import summary
    from ..plan import Layout
    from ..resources import Resources, available_cores, pick_devices, tune_process
    from .progress import Progress

    progress = Progress(quiet)
    shown: set[str] = set()

    def resources() -> Resources:
        tune_process()
        chosen, *others = pick_devices(device)
        each = 2 if chosen.startswith("cuda") else available_cores()
        count = workers or each * (1 + len(others))
        return Resources(chosen, count, memory, gpu_memory, others=tuple(others))

    def planned(plan: Plan) -> None:
        shown.update(plan.notes)
        if not quiet:
            for note in _shorten(plan.notes, verbose):
                click.echo(f"note: {note}", err=True)
        progress.start(len(plan.steps))

    with progress:
        receipt = merge(
            loaded,
            out,
            resources=resources,
            overwrite=overwrite,
            restart=restart,
            card=card,
            layout=Layout(out_shard_size, copy_tokenizer),
            lock=lock,
            planned=planned,
            observe=progress.step,
        )
    if as_json:
        click.echo(json.dumps({"path": str(receipt.path), **receipt.content}, indent=2))
    elif not quiet:
        for note in receipt.content["notes"]:
            if note not in shown:
                click.echo(f"note: {note}", err=True)
        click.echo("\n".join(summary(receipt.content, receipt.path)))
        if verbose:
            for site in receipt.content["sites"]:
                click.echo(
                    f"  {site['site']}  rank {site['rank']}  kept {site['retained']:.4f}  rounding {site['rounding']:.1e}"
                )


def _lock(recipe: str) -> Lock:
    from ..lock import lock_path, read_lock

    return read_lock(lock_path(recipe))


def _seeded(recipe: Recipe, seed: int | None) -> Recipe:
    if seed is None:
        return recipe
    if "seed" in recipe.model_fields_set:
        raise click.UsageError(f"--random-seed {seed}: the recipe sets seed: {recipe.seed} itself")
    return recipe.model_copy(update={"seed": seed})


def _shorten(notes: tuple[str, ...], verbose: bool) -> list[str]:
    limit = len(notes) if verbose else 12
    rest = len(notes) - limit
    return [*notes[:limit], *([f"{rest} more, see rmkit.json or use -v"] if rest > 0 else [])]

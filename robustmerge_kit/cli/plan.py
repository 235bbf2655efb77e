"""`rmkit plan` and `rmkit validate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RmkitError, Several
from .options import output_options, recipe_options

if TYPE_CHECKING:
    from ..plan import Fold, Plan


@click.command()
@click.argument("recipe")
@click.argument("out", type=click.Path(path_type=Path), required=False)
@recipe_options
@output_options
def plan(recipe: str, out: Path | None, settings: tuple[str, ...], as_json: bool, quiet: bool, debug: bool) -> None:
    """Show what RECIPE would do: sites, ranks, sizes, memory, disk. Reads headers only."""
    from ..disk import check_space, free_bytes
    from ..merge import output_path, prepare
    from ..recipe import load_recipe, parse_settings

    prepared = prepare(load_recipe(recipe, parse_settings(settings)), out)
    target = output_path(prepared.recipe, out)
    content = {**describe(prepared), "output_path": str(target), "free_disk_bytes": free_bytes(target)}
    check_space(target, prepared.write_bytes)
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    _print(content, quiet)


def describe(prepared: Plan) -> dict[str, Any]:
    """A plan as JSON; the memory is forecast for a run with default flags on this machine."""
    from ..plan import largest_job, peak_bytes
    from ..resources import DEFAULT_MEMORY, available_cores

    return {
        "merge_method": prepared.recipe.merge_method,
        "inputs": [
            {"name": a.label, "layout": a.layout, "sites": len(a.sites), "extras": len(a.extras), "base_model": a.base}
            for a in prepared.adapters
        ],
        "layout": prepared.target.layout,
        "dtype": prepared.dtype,
        "rank": prepared.rank,
        "rank_decided": not prepared.rank_depends_on_data,
        "read_bytes": prepared.read_bytes,
        "write_bytes": prepared.write_bytes,
        "largest_step_bytes": largest_job(prepared),
        "peak_memory_bytes": peak_bytes(prepared, available_cores(), DEFAULT_MEMORY),
        **({"base": _base(prepared.fold)} if prepared.fold else {}),
        "sites": [
            {
                "site": step.site,
                "method": step.method.name,
                "space": step.space[0] if step.space else None,
                "d_out": step.model.d_out,
                "d_in": step.model.d_in,
                "input_ranks": list(step.ranks),
                "rank": None if prepared.rank_depends_on_data else step.cut or step.full_rank,
                "weights": [member.weight for member in step.members],
            }
            for step in prepared.steps
        ],
        "extras": [{"name": step.name, "rule": step.rule, "shape": list(step.spec.shape)} for step in prepared.extras],
        "dropped": list(prepared.dropped),
        "notes": list(prepared.notes),
    }


def _base(fold: Fold) -> dict[str, Any]:
    """Where a model comes from and what is written of it."""
    return {
        "reference": fold.base.source.reference,
        "revision": fold.base.source.revision,
        "tensors": len(fold.base.tensors),
        "changed_tensors": len({place.tensor for places in fold.places.values() for place in places}) + len(fold.changes),
        "files": [{"name": file.name, "bytes": file.nbytes, "patched": file.clone is not None} for file in fold.files],
    }


def _print(content: dict[str, Any], quiet: bool) -> None:
    rank = f"rank {content['rank']}" if content["rank_decided"] else f"rank at most {content['rank']}, the data decide"
    click.echo(f"{content['merge_method']}: {len(content['inputs'])} adapters, {len(content['sites'])} sites")
    click.echo(f"  {'site':<56} {'method':<16} {'d_out x d_in':>14}  ranks -> rank")
    for site in content["sites"]:
        shape = f"{site['d_out']} x {site['d_in']}"
        ranks = ",".join(map(str, site["input_ranks"]))
        method = site["method"] + (f" in {site['space']}" if site["space"] else "")
        click.echo(f"  {site['site']:<56} {method:<16} {shape:>14}  {ranks} -> {site['rank'] or '?'}")
    for extra in content["extras"]:
        click.echo(f"  {extra['name']:<56} {extra['rule']:<16} {' x '.join(map(str, extra['shape'])):>14}")
    for line in content["dropped"]:
        click.echo(f"  dropped: {line}")
    if base := content.get("base"):
        patched = sum(file["patched"] for file in base["files"])
        click.echo(
            f"folds into {base['reference']}: {base['changed_tensors']} of {base['tensors']} tensors change; "
            f"{len(base['files'])} files, {patched} of them patched copies of the base's"
        )
    click.echo(
        f"reads {content['read_bytes'] / 1e6:.1f} MB, writes {content['write_bytes'] / 1e6:.1f} MB "
        f"({content['free_disk_bytes'] / 1e9:.1f} GB free), peak memory about {content['peak_memory_bytes'] / 1e9:.2f} GB"
    )
    click.echo(f"output: {content['output_path']} ({content['layout']}, {content['dtype']}, {rank})")
    if not quiet:
        for note in content["notes"]:
            click.echo(f"note: {note}", err=True)


@click.command()
@click.argument("recipes", nargs=-1, required=True)
@recipe_options
@output_options
def validate(recipes: tuple[str, ...], settings: tuple[str, ...], as_json: bool, quiet: bool, debug: bool) -> int:
    """Check RECIPES against the schema and against their inputs; weights are not read."""
    from ..merge import prepare
    from ..recipe import load_recipe, parse_settings

    values = parse_settings(settings)
    results: list[dict[str, Any]] = []
    code = 0
    for recipe in recipes:
        try:
            prepare(load_recipe(recipe, values))
            results.append({"recipe": recipe, "ok": True, "errors": []})
            if not quiet and not as_json:
                click.echo(f"{recipe}: ok")
        except RmkitError as error:
            parts = error.errors if isinstance(error, Several) else (error,)
            listing = [{"where": part.where, "what": part.what, "hint": part.hint} for part in parts]
            results.append({"recipe": recipe, "ok": False, "errors": listing})
            code = code or error.exit_code
            for part in parts:
                click.echo(f"error: {part}", err=True)
    if as_json:
        click.echo(json.dumps({"recipes": results}, indent=2))
    return code

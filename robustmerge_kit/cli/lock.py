"""`rmkit lock`."""

from __future__ import annotations

import json

import click

from .options import output_options, recipe_options

DIFFERS = 1
"""Exit code of --check when the answer is no."""


@click.command()
@click.argument("recipe")
@click.option("--check", is_flag=True, help="Compare with the lock there is; write nothing.")
@recipe_options
@output_options
def lock(recipe: str, check: bool, settings: tuple[str, ...], as_json: bool, quiet: bool, debug: bool) -> int:
    """Write down what RECIPE is made of: commits, hashes of all files, versions.

    The file is <recipe stem>.lock, beside the recipe; for a recipe from elsewhere in the working folder. `rmkit run --locked`
    takes what it says and refuses anything else. Every input is read once for its hash.

    Exit code: 1 when --check finds a difference.
    """
    from ..lock import lock_path, read_lock, take
    from ..plan import gather
    from ..recipe import load_recipe, parse_settings

    path = lock_path(recipe)
    there = read_lock(path) if check else None
    loaded = load_recipe(recipe, parse_settings(settings), there and there.commits)
    inputs = gather(loaded)
    differences: list[str] = []
    written = False
    taken = take(loaded, inputs, path)
    if there is None:
        written = taken.write()
    else:
        differences = list(there.differences(taken))
    if as_json:
        document = {"path": str(path), "written": written, "differences": differences, "lock": taken.content}
        click.echo(json.dumps(document, indent=2))
    elif differences:
        click.echo("\n".join(f"{path}: {line}" for line in differences))
    elif not quiet:
        files = sum(len(entry["files"]) for entry in (taken.content["recipe"], *taken.content["inputs"]))
        state = "written" if written else "nothing has changed"
        click.echo(f"{path}: {state}; {files} files of {len(taken.content['inputs'])} inputs and the recipe")
    return DIFFERS if differences else 0

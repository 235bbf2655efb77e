"""`rmkit methods` and `rmkit schema`."""

from __future__ import annotations

import inspect
import json
from typing import Any

import click

from .options import output_options


@click.command()
@click.argument("name", required=False)
@output_options
def methods(name: str | None, as_json: bool, quiet: bool, debug: bool) -> None:
    """List the merge methods, or print the manual page of NAME."""
    from ..methods import find, names

    if name is None:
        rows = [_row(method) for method in names()]
        if as_json:
            click.echo(json.dumps(rows, indent=2))
            return
        click.echo(f"{'name':<22} {'kind':<12} {'paper':<12} {'spaces':<30} settings")
        for row in rows:
            click.echo(
                f"{row['name']:<22} {row['kind']:<12} {row['paper']:<12} {','.join(row['spaces']):<30} "
                + ", ".join(row["settings"])
            )
        return
    method = find(name)
    page = manual_page(method)
    if as_json:
        click.echo(json.dumps({**_row(name), "page": page, "schema": method.params.model_json_schema()}, indent=2))
    else:
        click.echo(page)


def manual_page(method: Any) -> str:
    """The docstring of the module a method is defined in."""
    return inspect.getdoc(inspect.getmodule(method.merge)) or f"{method.name} has no manual page."


def _row(name: str) -> dict[str, Any]:
    from ..methods import find

    method = find(name)
    return {
        "name": method.name,
        "kind": method.kind,
        "paper": method.paper,
        "spaces": list(method.spaces),
        "settings": list(method.params.model_fields),
        "equal_ranks": method.equal_ranks,
        "adapters": list(method.adapters),
    }


@click.command()
@output_options
def schema(as_json: bool, quiet: bool, debug: bool) -> None:
    """Print the JSON Schema of a recipe; editors complete and check recipes with it."""
    from ..recipe import json_schema

    click.echo(json.dumps(json_schema(), indent=2))

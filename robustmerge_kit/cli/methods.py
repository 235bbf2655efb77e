"""`rmkit methods` and `rmkit schema`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from .options import output_options


@click.command()
@click.argument("name", required=False)
@output_options
def methods(name: str | None, as_json: bool, quiet: bool, debug: bool) -> None:
    """List the merge methods, or print the manual page of NAME, a method or a pre or post step."""
    from ..report import manual

    if name is None:
        lines = [json.dumps([asdict(each) for each in manual.every_method()], indent=2)] if as_json else manual.listing()
    else:
        lines = [json.dumps(manual.document(name), indent=2)] if as_json else manual.page(name)
    click.echo("\n".join(lines))


@click.command()
@output_options
def schema(as_json: bool, quiet: bool, debug: bool) -> None:
    """Print the JSON Schema of a recipe; editors complete and check recipes with it."""
    from ..recipe import json_schema

    click.echo(json.dumps(json_schema(), indent=2))

"""`rmkit push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import output_options

if TYPE_CHECKING:
    from ..publish import Destination, Parcel, Published


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make a repository that only its owners see.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to; it is made if it is missing.  [default: main]")
@click.option("-m", "--message", help="Commit message.")
@click.option("--create-pr", is_flag=True, help="Open a pull request on an existing repository.")
@click.option("--dry-run", is_flag=True, help="Check the folder and list what would be sent; no network.")
@output_options
def push(
    out: Path,
    repository: str,
    private: bool,
    revision: str | None,
    message: str | None,
    create_pr: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Upload OUT, a finished output folder, to REPOSITORY (org/name) on the Hub, with its card.

    Only files that the receipt vouches for are sent, if their sha256 is still that of the receipt. The token is that of
    `hf auth login`, or HF_TOKEN.
    """
    from huggingface_hub.utils import disable_progress_bars

    from ..publish import Destination, publish

    if quiet:
        disable_progress_bars()
    destination = Destination(repository, revision, private, create_pr)

    def planned(parcel: Parcel) -> None:
        for note in () if quiet else parcel.notes:
            click.echo(f"note: {note}", err=True)

    done = publish(out, destination, message=message, dry_run=dry_run, planned=planned)
    if as_json:
        click.echo(json.dumps(describe(done, destination), indent=2))
        return
    if not quiet:
        for note in done.notes:
            click.echo(f"note: {note}", err=True)
    if dry_run:
        for name, digest in done.parcel.files.items():
            click.echo(f"  {name:<40} {digest.size:>15,} bytes")
        click.echo(f"would send these, the receipt and the card to {repository}")
    else:
        click.echo(done.pull_request or done.url)


def describe(done: Published, destination: Destination) -> dict[str, Any]:
    """What was done, as JSON."""
    return {
        "repository": destination.repository,
        "revision": destination.revision or "main",
        "private": destination.private,
        "dry_run": done.url is None,
        "url": done.url,
        "commit": done.commit,
        "pull_request": done.pull_request,
        "files": [{"name": name, "size": digest.size, "sha256": digest.sha256} for name, digest in done.parcel.files.items()],
        "notes": [*done.parcel.notes, *done.notes],
    }

"""`rmkit convert`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .options import output_options


class Renaming(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """OLD=NEW."""

    name = "old=new"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        old, sign, new = str(value).partition("=")
        if not sign:
            self.fail(f"{value!r} is not OLD=NEW, e.g. model.=language_model.model.", param, ctx)
        return old, new


@click.command()
@click.argument("adapter")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["peft", "llava", "kohya", "diffusers", "same"]),
    default="peft",
    show_default=True,
    help="Layout to write; same: the adapter's own.",
)
@click.option("--weights", type=click.Choice(["safetensors", "bin"]), help="File format, where the layout has both.")
@click.option("--adapter-name", metavar="NAME", help="The adapter to take from a file or folder that holds several.")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), help="Alpha, where the file has none or a wrong one.")
@click.option("--base", type=click.Path(path_type=Path), help="Base model, or its index: source of module names.")
@click.option("--names", type=click.Path(path_type=Path), help="Text file of module names, one a line.")
@click.option("--base-model", metavar="NAME", help="What the result calls its base, e.g. org/name.")
@click.option("--component", metavar="NAME", help="Model that is adapted, as diffusers calls it: unet, text_encoder, ...")
@click.option("--prefix", metavar="PREFIX", help="kohya's prefix of the modules, where it is not the component's usual one.")
@click.option("--rename", type=Renaming(), multiple=True, metavar="OLD=NEW", help="Rewrite the beginning of module names.")
@click.option("--uniform", is_flag=True, help="One rank and one alpha for all modules, as servers need.")
@click.option("--drop-extras", is_flag=True, help="Leave out tensors that are no LoRA factors: heads, projectors, biases.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output folder, once the new one is whole.")
@output_options
def convert(
    adapter: str,
    out: Path,
    to: Any,
    weights: Any,
    adapter_name: str | None,
    alpha: float | None,
    base: Path | None,
    names: Path | None,
    base_model: str | None,
    component: str | None,
    prefix: str | None,
    rename: tuple[tuple[str, str], ...],
    uniform: bool,
    drop_extras: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Write ADAPTER in another layout or file format into the folder OUT.

    ADAPTER is a folder, a file or a Hub reference org/name[@revision][:subfolder]. Factors keep their numbers bit for bit;
    scales go where the layout keeps them. The folder appears whole or not at all.
    """
    from ..convert import Wish
    from ..convert import convert as run
    from ..resources import tune_process
    from .progress import Progress

    tune_process()
    wish = Wish(
        to=to,
        weights=weights,
        adapter_name=adapter_name,
        alpha=alpha,
        rename=dict(rename),
        base=base,
        names=names,
        base_model=base_model,
        component=component,
        prefix=prefix,
        uniform=uniform,
        drop_extras=drop_extras,
    )
    progress = Progress(quiet, "converting")
    shown: set[str] = set()

    def note(lines: Sequence[str]) -> None:
        for line in lines:
            if not quiet and line not in shown:
                click.echo(f"note: {line}", err=True)
        shown.update(lines)

    def planned(tensors: int, notes: Sequence[str]) -> None:
        note(notes)
        progress.start(tensors)

    with progress:
        receipt = run(adapter, out, wish, overwrite=overwrite, planned=planned, observe=progress.step)
    if as_json:
        click.echo(json.dumps({"path": str(receipt.path), **receipt.content}, indent=2))
    elif not quiet:
        note(receipt.content["notes"])
        done, totals = receipt.content["conversion"], receipt.content["totals"]
        what = "scales folded into B" if totals["scaled"] else "bit for bit"
        click.echo(f"{done['from']} -> {done['to']}: {totals['sites']} modules, {what}, into {receipt.path}")

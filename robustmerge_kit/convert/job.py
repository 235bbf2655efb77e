"""The whole conversion in a few lines: reference -> adapter -> parts -> draft -> tensors -> folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..adapters import Adapter
from ..disclosure import publishable
from ..disk import check_space
from ..errors import InputError, OutputError, UsageError
from ..output import Receipt, check_free, staged
from ..output.receipt import peak_memory, versions
from ..output.tensor_files import TensorFiles, write_bytes, write_json
from ..plan import check_output_name, targets
from ..recipe.front_matter import licence_beside
from ..sources import FileDigest, digest
from .card import write_card
from .draft import Draft, Rounding
from .layouts import draft_copy, draft_diffusers, draft_kohya, draft_llava, draft_peft
from .parts import Part, read_adapters, take_apart
from .wish import Wish

_PREFIX = re.compile(r"lora_(unet|te\d?|transformer|prior_unet|prior)")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def convert(
    reference: str,
    out: Path,
    wish: Wish,
    *,
    place: Path | None = None,
    overwrite: bool = False,
    planned: Callable[[int, Sequence[str]], None] = lambda tensors, notes: None,
    observe: Callable[[str, int, int], None] = lambda name, tensors, nbytes: None,
) -> Receipt:
    """Write an adapter in another layout or file format; the numbers stay what they are, bit for bit where that is possible.

    `place` is where a relative reference starts, else the working folder. The folder appears whole or not at all. `planned`
    gets the number of tensors and the notes before any weight is read, `observe` every tensor.

    Raises: RmkitError; every mistake of the user's is reported before anything is written.
    """
    target = _target(out)
    _check_wish(wish)
    check_free(target, overwrite)
    adapters = read_adapters(reference, place or Path.cwd(), wish)
    _keep_apart(target, [adapter for _, adapter in adapters])
    notes = [note for _, adapter in adapters for note in adapter.notes]
    to, parts, drafts = _draft(adapters, wish, target, notes)
    entries = [entry for draft in drafts for file in draft.files.values() for entry in file]
    check_space(target, sum(entry.spec.nbytes for entry in entries))
    planned(len(entries), notes)
    files = digest({path for _, adapter in adapters for path in adapter.files})
    rounding = Rounding()
    with staged(target, overwrite) as stage:
        for draft in drafts:
            _write(draft, stage / draft.folder, rounding, observe)
        if rounding.tensors:
            notes.append(f"{rounding.tensors} factors hold their scale; rounding them costs {rounding.relative:.1e}")
        written = digest(path for path in sorted(stage.rglob("*")) if path.is_file())
        names = {path.relative_to(stage).as_posix(): value for path, value in written.items()}
        content = publishable(_describe(adapters, parts, wish, to, drafts, rounding, notes, files, names))
        write_json(stage / "rmkit.json", content)
        write_bytes(stage / "README.md", write_card(content, target.name).encode())
    return Receipt(target, content)


def _target(out: Path) -> Path:
    path = out.expanduser().absolute()
    if path.suffix in _WEIGHTS:
        raise UsageError(f"OUT is a folder, and {out.name} is named like a file", hint=f"name it {path.stem}")
    return path.parent.resolve() / path.name


def _check_wish(wish: Wish) -> None:
    if wish.prefix is not None and (wish.to != "kohya" or not _PREFIX.fullmatch(wish.prefix)):
        raise UsageError(
            f"--prefix {wish.prefix}: it is kohya's prefix of the modules, for --to kohya",
            hint="known are lora_unet, lora_te, lora_te1, lora_te2, lora_te3, lora_transformer, lora_prior",
        )
    if wish.uniform and wish.to not in ("peft", "llava"):
        raise UsageError(f"--uniform: {wish.to} files hold a scale for each module", hint="use it with --to peft")


def _keep_apart(target: Path, adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        folder = adapter.source.folder.resolve()
        inside = adapter.source.file is None and folder in target.parents
        if inside or target == folder or target in folder.parents:
            raise OutputError(
                f"the output folder and the input {adapter.label} lie inside each other",
                where=str(target),
                hint="choose an output folder outside of the input",
            )


def _draft(
    adapters: list[tuple[str, Adapter]], wish: Wish, target: Path, notes: list[str]
) -> tuple[str, list[Part], list[Draft]]:
    """The layout that is written, the models it adapts, and its folders."""
    layout = adapters[0][1].layout
    to = wish.to
    if to == "same":
        if layout == "mlx":
            raise InputError("MLX adapters are read, not written", where=adapters[0][1].label, hint="use --to peft")
        if layout not in ("peft", "llava"):
            return layout, [], draft_copy(adapters[0][1], wish)
        to = layout
    parts = take_apart(adapters, wish)
    if wish.prefix and len(parts) > 1:
        raise UsageError(f"--prefix {wish.prefix}: the adapter has {len(parts)} components", hint="leave the option out")
    if to == "llava":
        check_output_name(targets.llava(), target)
        return to, parts, draft_llava(parts, wish, notes)
    if to == "kohya":
        return to, parts, draft_kohya(parts, wish, notes, target.name)
    return to, parts, draft_diffusers(parts, wish, notes) if to == "diffusers" else draft_peft(parts, wish, notes)


def _write(draft: Draft, folder: Path, rounding: Rounding, observe: Callable[[str, int, int], None]) -> None:
    folder.mkdir(exist_ok=True)
    specs = {name: [entry.spec for entry in entries] for name, entries in draft.files.items()}
    files = TensorFiles(folder, specs, draft.metadata)
    try:
        for entries in draft.files.values():
            for entry in entries:
                files.write(entry.spec.name, entry.read(rounding))
                observe(entry.spec.name, 1, entry.spec.nbytes)
        files.close()
    except BaseException:
        files.abandon()
        raise
    for name, content in draft.documents.items():
        write_json(folder / name, content)


def _describe(
    adapters: list[tuple[str, Adapter]],
    parts: list[Part],
    wish: Wish,
    to: str,
    drafts: list[Draft],
    rounding: Rounding,
    notes: list[str],
    files: Mapping[Path, FileDigest],
    written: Mapping[str, FileDigest],
) -> dict[str, Any]:
    """The receipt. Paths are those the user wrote."""
    dtypes = {entry.spec.dtype for draft in drafts for file in draft.files.values() for entry in file if entry.ref}
    dropped = [note.removeprefix("dropped ") for note in notes if note.startswith("dropped ")]
    return {
        **versions(),
        "conversion": {
            "from": adapters[0][1].layout,
            "to": to,
            "components": [part.component for part in parts if part.component],
            "base_model": wish.base_model,
            "adapter_name": wish.adapter_name,
            "alpha": wish.alpha,
            "rename": dict(wish.rename),
            "uniform": wish.uniform,
        },
        "inputs": [
            {
                "name": adapter.label,
                "reference": adapter.source.reference,
                "repository": adapter.source.repository,
                "revision": adapter.source.revision,
                "layout": adapter.layout,
                "base_model": adapter.base,
                "license": licence_beside(adapter.source.folder),
                "files": [{"name": path.name, **asdict(files[path])} for path in adapter.files],
            }
            for _, adapter in adapters
        ],
        "output": {
            "layout": to,
            "dtype": ", ".join(sorted(dtypes)),
            "files": [{"name": name, **asdict(each)} for name, each in sorted(written.items())],
        },
        "totals": {
            "sites": sum(len(adapter.sites) for _, adapter in adapters),
            "scaled": rounding.tensors,
            "rounding_error": rounding.relative,
        },
        "dropped": dropped,
        "notes": [note for note in notes if not note.startswith("dropped ")],
        "memory": peak_memory(),
    }

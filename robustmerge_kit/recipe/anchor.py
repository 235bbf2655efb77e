"""References in a recipe made from several files: each is meant from its own file's place, and written for the recipe's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

from ..errors import RmkitError
from ..homes import Folder, Home, Opened, input_from, output_from, same_place
from .problems import Problems
from .yaml_text import Path


def anchor(data: dict[str, Any], problems: Problems, files: Sequence[Opened], place: FilePath) -> None:
    """Write adapters, base and output path as they must stand in a recipe in the folder `place`; mistakes are noted.

    `data` may be wrong in any way: what is no reference is passed over, for the schema reports it.
    """

    def settled(path: Path, value: Any, seen: Callable[[str, Home, FilePath], str]) -> Any:
        home = files[_file(path, problems)].home
        if not isinstance(value, str) or not value.strip() or same_place(home, place):
            return value
        try:
            return seen(value, home, place)
        except RmkitError as error:
            problems.add(path, f"{error.where}: {error.what}" if error.where else error.what, hint=error.hint)
            return value

    entries = data.get("adapters")
    if isinstance(entries, list):
        moved: list[Any] = []
        for i, entry in enumerate(entries):
            if isinstance(entry, dict) and "adapter" in entry:
                moved.append({**entry, "adapter": settled(("adapters", i, "adapter"), entry["adapter"], input_from)})
            else:
                moved.append(settled(("adapters", i), entry, input_from))
        data["adapters"] = moved
    if "base_model" in data:
        data["base_model"] = settled(("base_model",), data["base_model"], input_from)
    output = data.get("output")
    if isinstance(output, dict) and "path" in output:
        data["output"] = {**output, "path": settled(("output", "path"), output["path"], output_from)}


def folder_of_models(files: Sequence[Opened], problems: Problems) -> FilePath:
    """The folder in which mergekit's inputs are looked for; one without anything, where they stand in a file from elsewhere."""
    home = files[_file(("models",), problems)].home
    return home.path if isinstance(home, Folder) else FilePath("/dev/null")


def _file(path: Path, problems: Problems) -> int:
    """The number of the file a value stands in; mergekit's form may name the base among its models only."""
    document = problems.document
    source = problems.source(path)
    written = (name for name in (source[0], "models", "slices") if name in document.root.children)
    first = next(written, None)
    return document.value(source if first == source[0] else () if first is None else (first,)).file

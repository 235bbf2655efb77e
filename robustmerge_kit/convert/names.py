"""Module names for layouts that do not spell them: from a base checkpoint, or from a list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..adapters import read_json
from ..checkpoint import open_checkpoint
from ..errors import InputError
from ..sources import Source
from .components import flatten, split_diffusers, split_kohya

_LIST_LIMIT = 32 << 20


@dataclass(frozen=True)
class Names:
    """Module paths in the order they were found, each with its component, "" where that is not known."""

    origin: str
    modules: tuple[tuple[str, str], ...]


def names_of_base(path: Path) -> Names:
    """Module names of a base: a checkpoint's folder or file, a diffusers pipeline's folder, or an index file alone.

    Raises: InputError when there is no checkpoint, or it is broken.
    """
    where = str(path)
    if path.name.endswith(".index.json") and path.is_file():
        mapping = read_json(path).get("weight_map")
        if not isinstance(mapping, dict):
            raise InputError("has no weight_map of tensor names to file names", where=where)
        return _modules([str(name) for name in mapping], {""}, where)
    if not path.exists():
        raise InputError("no such file or folder", where=where, hint="--base takes the folder of the base model")
    source = Source(where, path) if path.is_dir() else Source(where, path.parent, path)
    checkpoint = open_checkpoint(source)
    return _modules(list(checkpoint.tensors), {prefix.removesuffix(".") for prefix in checkpoint.configs}, where)


def names_of_list(path: Path) -> Names:
    """Module names of a text file, one a line; empty lines and lines that start with # do not count.

    A name may start with its component: `unet.mid_block.attentions.0.proj_in`.

    Raises: InputError when it cannot be read or holds no name.
    """
    try:
        if path.stat().st_size > _LIST_LIMIT:
            raise InputError(f"is larger than {_LIST_LIMIT >> 20} MiB, which no list of names is", where=str(path))
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError("is not text", where=str(path), hint="write one module name a line") from error
    names = [line.removesuffix(".weight") for line in lines if line and not line.startswith("#")]
    odd = next((name for name in names if any(letter.isspace() for letter in name)), None)
    if odd is not None or not names:
        what = f"{odd[:80]!r} is not a module name" if odd else "holds no names"
        raise InputError(what, where=str(path), hint="write one module name a line, e.g. mid_block.attentions.0.proj_in")
    return Names(str(path), tuple(split_diffusers(name) for name in names))


def unflatten(sites: list[str], names: Names) -> dict[str, str]:
    """A mapping of kohya's names to module paths.

    Raises: InputError when a name belongs to no module, or to several.
    """
    known: dict[str, dict[str, list[str]]] = {}
    for component, path in names.modules:
        known.setdefault(component, {}).setdefault(flatten(path), []).append(path)
    found: dict[str, str] = {}
    unknown: list[str] = []
    for site in sites:
        component, _, flat = split_kohya(site)
        paths = known.get(component, {}).get(flat) or known.get("", {}).get(flat) or []
        if len(set(paths)) > 1:
            raise InputError(f"{site} can be {' or '.join(sorted(set(paths)))}", where=names.origin, hint="give --names")
        if paths:
            found[site] = paths[0]
        else:
            unknown.append(site)
    if unknown:
        some = flatten(names.modules[0][1]) if names.modules else "nothing"
        raise InputError(
            f"{len(unknown)} of {len(sites)} modules are not there (first {unknown[0]}; names there are like {some})",
            where=names.origin,
            hint="the LoRA belongs to another model, or uses the names of the original code instead of diffusers'; "
            "--names FILE gives the names one a line",
        )
    return found


def number(sites: list[str], names: Names) -> dict[str, str]:
    """A mapping of the pairs' numbers to module paths: the list is taken in the order of the numbers.

    Raises: InputError when there are not as many names as pairs.
    """
    if len(names.modules) != len(sites):
        raise InputError(
            f"holds {len(names.modules)} names for {len(sites)} pairs",
            where=names.origin,
            hint="give one name for each pair, in the order of the numbers",
        )
    ordered = sorted(sites, key=int)
    paths = [".".join(part for part in name if part) for name in names.modules]
    twice = next((path for path in paths if paths.count(path) > 1), None) if len(set(paths)) < len(paths) else None
    if twice:
        raise InputError(f"names {twice} twice", where=names.origin)
    return dict(zip(ordered, paths, strict=True))


def _modules(tensors: list[str], components: set[str], where: str) -> Names:
    """Modules that own a tensor called weight."""
    modules: list[tuple[str, str]] = []
    for name in tensors:
        if not name.endswith(".weight"):
            continue
        head, _, rest = name.removesuffix(".weight").partition(".")
        modules.append((head, rest) if head in components and rest else ("", name.removesuffix(".weight")))
    if not modules:
        raise InputError("holds no tensor whose name ends in .weight", where=where)
    return Names(where, tuple(modules))

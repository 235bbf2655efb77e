"""What the user names on the command line -> jobs: files, folders, patterns, references, matrices; nothing is judged here."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import RmkitError, UsageError
from .tasks import Failure, Job

SUFFIXES = (".yaml", ".yml")
_LARGEST = 1_000_000


def find_jobs(
    arguments: Sequence[str], out: Path | None, logs: Path, settings: Mapping[str, str] | None = None
) -> tuple[list[Job], dict[str, Failure]]:
    """The jobs that arguments stand for, in order, each recipe once; and what is wrong with a matrix, by job name.

    A folder stands for the .yaml and .yml files in it, a pattern for what it matches, anything else for itself. `out` is a
    folder for all results: each goes to a sub-folder with the job's name. `settings` are values for vars of all recipes.

    Raises: UsageError for a folder or pattern without recipes.
    """
    recipes = list(dict.fromkeys(recipe for argument in arguments for recipe in _recipes(argument)))
    names = dict(zip(recipes, _names(recipes), strict=True))
    jobs: list[Job] = []
    broken: dict[str, Failure] = {}
    for recipe in recipes:
        try:
            jobs += _variants(recipe, names[recipe])
        except RmkitError as error:
            jobs.append(Job(names[recipe], recipe))
            broken[names[recipe]] = failure_of(error)
    return [replace(_placed(job, out, logs), settings=settings or {}) for job in jobs], broken


def failure_of(error: RmkitError) -> Failure:
    """An error as the result of a task."""
    parts = getattr(error, "errors", (error,))
    return Failure(tuple({"where": p.where, "what": p.what, "hint": p.hint} for p in parts), error.exit_code)


def _recipes(argument: str) -> Iterable[str]:
    if os.path.isdir(argument):  # noqa: PTH112
        found = [path for path in Path(argument).iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")]
        if not found:
            raise UsageError("holds no .yaml or .yml file", where=argument, hint="name the folder that holds the recipes")
        return sorted(map(str, found))
    if os.path.lexists(argument) or not glob.has_magic(argument):
        return [argument]
    found = sorted(path for path in glob.glob(argument, recursive=True) if not os.path.isdir(path))  # noqa: PTH207, PTH112
    if not found:
        raise UsageError("matches no file", where=argument, hint="patterns know *, ?, [..] and ** for folders at any depth")
    return found


def _names(recipes: Sequence[str]) -> list[str]:
    """Short and distinct: the file's name without suffix, with as many of its folders as it takes."""
    parts = [_stem(recipe).split("/") for recipe in recipes]
    names = [part[-1] for part in parts]
    for depth in range(2, max((len(part) for part in parts), default=0) + 1):
        repeated = {name for name, count in Counter(names).items() if count > 1}
        names = ["/".join(p[-depth:]) if name in repeated else name for name, p in zip(names, parts, strict=True)]
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[i] = f"{name}-{seen[name]}"
    return names


def _stem(recipe: str) -> str:
    """A path or reference without suffix, and without parts that mean something to a file system."""
    text = re.sub(r"\.ya?ml$", "", recipe)
    words = [re.sub(r"[^\w.+@=,-]+", "-", part).strip("-") for part in re.split(r"[/\\:]+", text)]
    return "/".join(word for word in words if word.strip(".")) or "recipe"


def _variants(recipe: str, name: str) -> list[Job]:
    """The jobs of a matrix, or the one job of a recipe.

    Raises: RecipeError for a matrix that is written wrong.
    """
    path = Path(recipe)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError):
        return [Job(name, recipe)]  # a reference, or a file that cannot be read: checking it says what is wrong
    if b"matrix" not in content or len(content) > _LARGEST:
        return [Job(name, recipe)]
    from ..recipe import expand

    variants = expand(content.decode("utf-8-sig", errors="replace"), path)
    if variants is None:
        return [Job(name, recipe)]
    return [Job(f"{name}/{each.name}", recipe, each, out=each.output) for each in variants]


def _placed(job: Job, out: Path | None, logs: Path) -> Job:
    """The job with its log, and its output where the command line names a folder for all."""
    return replace(job, out=out / job.name if out is not None else job.out, log=logs / f"{job.name.replace('/', '.')}.log")

"""What is evaluated: the bare base, single adapters, and the merges of recipes; everything is checked before it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustmerge_kit.adapters import Adapter, read_adapter
from robustmerge_kit.batch.done import difference
from robustmerge_kit.errors import OutputError, RmkitError, UsageError, raise_all
from robustmerge_kit.merge import merge, prepare
from robustmerge_kit.recipe import Recipe, load_recipe
from robustmerge_kit.resources import Resources, available_cores
from robustmerge_kit.sources import resolve, resolve_all

from .tasks import TASKS, Task

RECIPES = Path(__file__).resolve().parent / "recipes"
ZERO_SHOT, INDIVIDUAL = "zero-shot", "individual"
PAPER = (ZERO_SHOT, INDIVIDUAL, "task_arithmetic", "dare", "ties", "pcb", "robustmerge")
"""The rows of Table 2 that can be run; the multi-task adapter was not released."""
RELEASED = "AuroraZengfh"
_PREFIX = "LLaVA_7B_lora_r16_"


@dataclass(frozen=True)
class Candidate:
    """One row of the table: for every task it covers, the adapter to answer with, None for the bare base.

    model: a whole model to answer with, in the place of the base.
    """

    name: str
    adapters: Mapping[str, Adapter | None]
    model: str | None = None


@dataclass(frozen=True)
class Merge:
    """A recipe that has been planned, and where its result goes."""

    name: str
    recipe: Recipe
    target: Path

    def carry_out(self, overwrite: bool) -> Path:
        """Merge, or keep what an earlier run made from the same recipe and inputs.

        Raises: OutputError when the folder holds something else; what `merge` raises.
        """
        if self.target.exists():
            why = difference(prepare(self.recipe, self.target), self.target)
            if why is None:
                return self.target
            if not overwrite:
                raise OutputError(f"cannot be used again: {why}", where=str(self.target), hint="--restart replaces it")
        merge(self.recipe, self.target, resources=Resources(workers=available_cores()), overwrite=self.target.exists())
        return self.target


def plan_merges(names: Sequence[str], adapters: str, out: Path) -> list[Merge]:
    """Load and plan the recipes among `names`: those of this benchmark by name, others by the path of their file.

    adapters: the folder that holds the eight released adapters by their names, or the owner of their repositories.
    Raises: RmkitError, all together, before any weight is read.
    """
    merges: list[Merge] = []
    errors: list[RmkitError] = []
    for name in names:
        if name in (ZERO_SHOT, INDIVIDUAL):
            continue
        try:
            file = _recipe_file(name)
            own = RECIPES in file.parents
            recipe = load_recipe(file, {"adapters": place_of(adapters)} if own else None)
            label = name.replace("/", "-") if own else file.stem
            target = out / "merged" / f"llava-v1.5-7b-lora-{label}"
            prepare(recipe, target)
            merges.append(Merge(label, recipe, target))
        except RmkitError as error:
            errors.append(error)
    raise_all(errors)
    return merges


def read_released(adapters: str, names: Sequence[str]) -> dict[str, Adapter]:
    """Those of the released adapters that `names` need, by the short names tasks.py has; read once, so told of once.

    Raises: InputError, all together, for what cannot be found or read.
    """
    if not any(name == INDIVIDUAL or (RECIPES / f"{name}.yaml").is_file() for name in names):
        return {}
    short = [task.adapter for task in TASKS if task.adapter is not None]
    sources = resolve_all([f"{place_of(adapters)}/{_PREFIX}{name}" for name in short], Path.cwd())
    return {name: read_adapter(source, label=name) for name, source in zip(short, sources, strict=True)}


def place_of(adapters: str) -> str:
    """What recipes put before an adapter's name: a folder's full path, or the owner's name on the Hub."""
    return str(Path(adapters).resolve()) if Path(adapters).is_dir() else adapters


def single_candidates(
    names: Sequence[str],
    tasks: Sequence[Task],
    released: Mapping[str, Adapter],
    given: Sequence[str] = (),
    models: Sequence[str] = (),
) -> list[Candidate]:
    """The rows that need no merge: zero-shot, individual, and the user's own adapters and models as `LABEL=FOLDER`.

    Raises: RmkitError, all together, for adapters that cannot be found or read.
    """
    found: list[Candidate] = []
    errors: list[RmkitError] = []
    if ZERO_SHOT in names:
        found.append(Candidate(ZERO_SHOT, {task.name: None for task in tasks}))
    if INDIVIDUAL in names:
        found.append(Candidate(INDIVIDUAL, {task.name: released[task.adapter] for task in tasks if task.adapter is not None}))
    for text in given:
        label, reference = split_label("--adapter", text)
        try:
            adapter = read(reference, label)
        except RmkitError as error:
            errors.append(error)
        else:
            found.append(Candidate(label, {task.name: adapter for task in tasks}))
    for text in models:
        label, reference = split_label("--model", text)
        found.append(Candidate(label, dict.fromkeys((task.name for task in tasks), None), reference))
    raise_all(errors)
    return found


def split_label(flag: str, text: str) -> tuple[str, str]:
    """Label and reference of `LABEL=FOLDER`.

    Raises: UsageError for another form.
    """
    label, _, reference = text.partition("=")
    if not label or not reference or "/" in label:
        raise UsageError(f"{flag} {text}: write LABEL=FOLDER", hint="the label is the row's name in the table")
    return label, reference


def read(reference: str, label: str) -> Adapter:
    """An adapter by a reference as recipes have them, relative paths from here; headers only.

    Raises: InputError.
    """
    return read_adapter(resolve(reference, Path.cwd()), label=label)


def _recipe_file(name: str) -> Path:
    own, given = RECIPES / f"{name}.yaml", Path(name)
    if own.is_file():
        return own
    if given.suffix in (".yaml", ".yml"):
        return given
    known = sorted(
        str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml") if path.stem != "released"
    )
    raise UsageError(
        f"--methods {name}: no such method", hint=f"{ZERO_SHOT}, {INDIVIDUAL}, {', '.join(known)}, or the path of a recipe"
    )

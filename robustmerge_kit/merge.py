"""The whole program in a few lines: recipe -> inputs -> plan -> tensors -> folder. Start reading here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .clock import Clock
from .conflict import measure_conflict
from .cores import Cores
from .disk import check_space
from .errors import OutputError, RecipeError
from .execute import Observe, decide_ranks, execute
from .folding import Folding, Written
from .hashing import Hashing
from .late import load
from .links import as_path
from .lock import Lock
from .outcome import Outcome
from .output import (
    PICTURE,
    AdapterFiles,
    Receipt,
    check_free,
    clear_leftovers,
    describe,
    picture,
    staged,
    unfinished_bytes,
    unfinished_stage,
    write_bytes,
    write_card,
    write_json,
)
from .parts import POLL, Took, help_with, lead
from .plan import DEFAULT_LAYOUT, Inputs, Layout, Plan, check_output_name, gather, make_plan
from .recipe import Recipe, load_recipe
from .resources import Resources
from .sources import digest


def merge(
    recipe: Recipe,
    out: Path | None = None,
    *,
    resources: Resources | Callable[[], Resources] | None = None,
    overwrite: bool = False,
    restart: bool = False,
    card: bool = True,
    layout: Layout = DEFAULT_LAYOUT,
    lock: Lock | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
    observe: Observe = lambda name, sites, nbytes: None,
    sharing: Took | None = None,
) -> Receipt:
    """Run a recipe and write its result to `out`, else to the recipe's `output.path`, else to `<recipe name>-merged`.

    The folder appears whole or not at all. A folded model that a signal or a full disk left unfinished is gone on with, unless
    `restart`. `layout`: how a folded model is split into files. `lock`: what everything must still be. `resources`: may be a
    function, which takes the time to look for devices and is called once nothing is wrong with the recipe. `planned` is called
    once before any weight is read, `observe` after every step. `sharing`: processes that `assist` may do parts of a folded
    model; called with the files of every part that this one begins.

    Raises: RmkitError; every mistake of the user's is reported before anything is written.
    """
    refuse_sweep(recipe)
    clock = Clock()
    target = output_path(recipe, out)
    check_free(target, overwrite)
    inputs = gather(recipe)
    keep_inputs_apart(target, inputs, recipe)
    if lock is not None:
        lock.check(recipe, inputs)
    clock.lap("headers")
    with Hashing(inputs) as hashing:
        plan = make_plan(recipe, inputs, layout)
        check_output_name(plan.target, target)
        # The inputs are hashed meanwhile, by a core that has nothing else to do.
        load("torch")
        chosen = resources() if callable(resources) else resources or Resources()
        identity = hashing.merge_identity(plan, chosen.device, layout) if plan.fold else None
        if restart:
            clear_leftovers(target)
        check_space(target, plan.write_bytes - unfinished_bytes(target, identity))
        planned(plan)
        clock.lap("plan")
        identities = hashing.identities() if plan.random else [adapter.label for adapter in plan.adapters]
        plan = decide_ranks(plan, identities, chosen)
        clock.lap("ranks")
        run = _Run(plan, identities, chosen, hashing, clock, observe)
        with staged(target, overwrite, identity) as stage:
            written = run.fold(stage, identity, sharing) if identity else run.merge(stage)
            content = run.document(stage, written, target.name if card else None)
    return Receipt(target, content)


def assist(
    recipe: Recipe,
    out: Path | None,
    *,
    resources: Resources,
    expected: Callable[[], bool],
    observe: Observe = lambda name, sites, nbytes: None,
    took: Took = lambda names: None,
) -> tuple[str, ...]:
    """Do parts of a folded model that another process merges with `sharing`; the files written here.

    Waits for that process while it is `expected`. Nothing is done for a folder that is made from anything else.

    Raises: RmkitError; what goes wrong with a part goes wrong in the other process too.
    """
    target = output_path(recipe, out)
    inputs = gather(recipe)
    with Hashing(inputs, base=False) as hashing:
        plan = make_plan(recipe, inputs)
        identity = hashing.merge_identity(plan, resources.device, DEFAULT_LAYOUT)
        identities = hashing.identities() if plan.random else [adapter.label for adapter in plan.adapters]
    while True:
        stage = unfinished_stage(target, identity)
        files = help_with(Folding(plan, stage, identity, identities, resources, observe), took) if stage else None
        if files is not None:
            return files
        if not expected():
            return ()
        time.sleep(POLL)


def prepare(recipe: Recipe | Path, out: Path | None = None) -> Plan:
    """Read the headers of the inputs of a recipe, or of a recipe's file, and plan it; nothing is written.

    The name of the output is judged as far as it is known: `out`, else the recipe's `output.path`.

    Raises: RmkitError.
    """
    loaded = load_recipe(recipe) if isinstance(recipe, Path) else recipe
    inputs = gather(loaded)
    plan = make_plan(loaded, inputs)
    if out is not None or loaded.output.path:
        check_output_name(plan.target, output_path(loaded, out))
    return plan


def write_adapter(
    plan: Plan,
    folder: Path,
    identities: list[str],
    resources: Resources,
    observe: Observe = lambda name, sites, nbytes: None,
    cores: Cores | None = None,
) -> Outcome:
    """Merge into an adapter's weights and configuration, in a folder that is there; no receipt, no card.

    cores: kept from earlier merges, and for later ones.

    Raises: what `execute` raises, OutputError when the disk refuses.
    """
    files = AdapterFiles(folder, plan)
    try:
        outcome = execute(plan, files, identities, resources, observe, cores)
        files.close()
    except BaseException:
        files.abandon()
        raise
    return outcome


@dataclass(frozen=True)
class _Run:
    """One plan on its way into a staged folder."""

    plan: Plan
    identities: list[str]
    resources: Resources
    hashing: Hashing
    clock: Clock
    observe: Observe

    def merge(self, stage: Path) -> Written:
        """Write an adapter."""
        outcome = write_adapter(self.plan, stage, self.identities, self.resources, self.observe)
        self.clock.lap("merge")
        return Written(outcome)

    def fold(self, stage: Path, identity: str, sharing: Took | None) -> Written:
        """Write a model, or what an earlier run left to do of it."""
        written = lead(Folding(self.plan, stage, identity, self.identities, self.resources, self.observe), sharing)
        self.clock.lap("merge")
        return written

    def document(self, stage: Path, written: Written, title: str | None) -> Mapping[str, object]:
        """Recipe, receipt and card beside the weights."""
        text = self.plan.recipe.text.encode()
        write_bytes(stage / "rmkit_recipe.yaml", text)
        paths = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
        fresh = digest([path for name, path in paths.items() if name not in written.digests])
        digests = {**written.digests, **{name: fresh[path] for name, path in paths.items() if path in fresh}}
        inputs = {**self.hashing.results(), **self.hashing.base_results()}
        self.clock.lap("write")
        written.outcome.conflict = measure_conflict(self.plan)
        self.clock.lap("conflict")
        recipe_digest = hashlib.sha256(text).hexdigest()
        content = describe(self.plan, written.outcome, inputs, self.resources, digests, self.clock.seconds(), recipe_digest)
        write_json(stage / "rmkit.json", content)
        if title is not None:
            write_bytes(stage / PICTURE, picture(content).encode())
            write_bytes(stage / "README.md", write_card(self.plan, content, title).encode())
        return content


def output_path(recipe: Recipe, out: Path | None) -> Path:
    """Where the result goes: the argument, else the recipe's `output.path` beside the recipe, else here by its name."""
    if out is not None:
        path = as_path(str(out)).absolute()
    elif recipe.output.path:
        path = (recipe.place / as_path(recipe.output.path)).absolute()
    else:
        path = Path.cwd() / f"{recipe.title.replace('/', '-')}-merged"
    return path.parent.resolve() / path.name


def refuse_sweep(recipe: Recipe) -> None:
    """Refuse a recipe that stands for many merges.

    Raises: RecipeError.
    """
    if recipe.sweep is not None:
        hint = "`rmkit sweep` runs it, and writes the best recipe; without the key `sweep` it is an ordinary recipe"
        raise RecipeError(f"{recipe.title} holds a sweep, which is many merges", where="sweep", hint=hint)


def keep_inputs_apart(target: Path, inputs: Inputs, recipe: Recipe) -> None:
    """Refuse an output that would hold, or lie in, an input or the recipe.

    Raises: OutputError.
    """
    target = target.resolve()
    for entry, adapter in zip(recipe.adapters, inputs.adapters, strict=True):
        folder = adapter.source.folder.resolve()
        if target == folder or folder in target.parents or target in folder.parents:
            raise OutputError(
                f"the output folder and the input {adapter.label} ({entry.adapter}) lie inside each other",
                where=str(target),
                hint="choose an output folder outside of all inputs",
            )
    if target in recipe.place.resolve().parents or target == recipe.place.resolve():
        raise OutputError("the output folder holds the recipe itself", where=str(target), hint="choose another output folder")

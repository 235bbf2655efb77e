"""The whole program in a few lines: recipe -> inputs -> plan -> tensors -> folder. Start reading here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from .clock import Clock
from .disk import check_space
from .errors import OutputError
from .execute import Observe, execute, survey_spectra
from .hashing import Hashing
from .outcome import Outcome
from .output import AdapterFiles, Receipt, check_free, describe, staged, write_card
from .plan import Inputs, Plan, check_output_name, gather, make_plan, settle_ranks
from .recipe import Recipe, load_recipe
from .resources import Resources
from .sources import digest


def merge(
    recipe: Recipe,
    out: Path | None = None,
    *,
    resources: Resources | None = None,
    overwrite: bool = False,
    card: bool = True,
    planned: Callable[[Plan], None] = lambda plan: None,
    observe: Observe = lambda name, sites, nbytes: None,
) -> Receipt:
    """Run a recipe and write its result to `out`, else to the recipe's `output.path`, else to `<recipe name>-merged`.

    The folder appears whole or not at all. `planned` is called once before any weight is read, `observe` after every step.

    Raises: RmkitError; every mistake of the user's is reported before anything is written.
    """
    clock = Clock()
    resources = resources or Resources()
    target = output_path(recipe, out)
    check_free(target, overwrite)
    inputs = gather(recipe)
    _keep_inputs_apart(target, inputs, recipe)
    clock.lap("headers")
    with Hashing(inputs) as hashing:
        plan = make_plan(recipe, inputs.adapters, inputs.notes)
        check_output_name(plan.target, target)
        check_space(target, plan.write_bytes)
        planned(plan)
        clock.lap("plan")
        identities = hashing.identities() if plan.random else [adapter.label for adapter in plan.adapters]
        plan = decide_ranks(plan, identities, resources)
        clock.lap("ranks")
        with staged(target, overwrite) as stage:
            content = _write(plan, stage, target.name if card else None, identities, resources, hashing, clock, observe)
    return Receipt(target, content)


def prepare(recipe: Path, out: Path | None = None) -> Plan:
    """Load a recipe, read its inputs' headers and plan it; nothing is written.

    The name of the output is judged as far as it is known: `out`, else the recipe's `output.path`.

    Raises: RmkitError.
    """
    loaded = load_recipe(recipe)
    inputs = gather(loaded)
    plan = make_plan(loaded, inputs.adapters, inputs.notes)
    if out is not None or loaded.output.path:
        check_output_name(plan.target, output_path(loaded, out))
    return plan


def decide_ranks(plan: Plan, identities: list[str], resources: Resources) -> Plan:
    """The plan with every site's rank decided; reads the inputs once more where ranks depend on singular values."""
    if not plan.rank_depends_on_data:
        return plan
    return settle_ranks(plan, survey_spectra(plan, identities, resources))


def _write(
    plan: Plan,
    stage: Path,
    title: str | None,
    identities: list[str],
    resources: Resources,
    hashing: Hashing,
    clock: Clock,
    observe: Observe,
) -> Mapping[str, object]:
    files = AdapterFiles(stage, plan)
    try:
        outcome = execute(plan, files, identities, resources, observe)
        clock.lap("merge")
        files.close()
    except BaseException:
        files.abandon()
        raise
    return _document(plan, files, stage, title, outcome, resources, hashing, clock)


def _document(
    plan: Plan,
    files: AdapterFiles,
    stage: Path,
    title: str | None,
    outcome: Outcome,
    resources: Resources,
    hashing: Hashing,
    clock: Clock,
) -> Mapping[str, object]:
    """Recipe, receipt and card beside the weights."""
    text = plan.recipe.text.encode()
    files.write_bytes("rmkit_recipe.yaml", text)
    written = {path.name: value for path, value in digest(sorted(stage.iterdir())).items()}
    digests = hashing.results()
    clock.lap("write")
    content = describe(plan, outcome, digests, resources, written, clock.seconds(), hashlib.sha256(text).hexdigest())
    files.write_json("rmkit.json", content)
    if title is not None:
        files.write_bytes("README.md", write_card(plan, content, title).encode())
    return content


def output_path(recipe: Recipe, out: Path | None) -> Path:
    """Where the result goes: the argument, else the recipe's `output.path` beside the recipe, else here by its name."""
    if out is not None:
        path = out.expanduser().absolute()
    elif recipe.output.path:
        path = (recipe.place / Path(recipe.output.path).expanduser()).absolute()
    else:
        path = Path.cwd() / f"{recipe.title.replace('/', '-')}-merged"
    return path.parent.resolve() / path.name


def _keep_inputs_apart(target: Path, inputs: Inputs, recipe: Recipe) -> None:
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

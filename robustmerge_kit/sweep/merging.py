"""Merges of one sweep: inputs are found, read of their headers and hashed once; a trial writes weights and configuration alone.

What is written equals what `rmkit run` writes of the same recipe, bit for bit; a receipt and a card are left out.
"""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..cores import Cores
from ..disk import check_space
from ..errors import RmkitError
from ..hashing import Hashing
from ..merge import decide_ranks, keep_inputs_apart, merge, output_path, write_adapter
from ..plan import Inputs, Plan, check_output_name, gather, make_plan
from ..recipe import Recipe, plain_data, vary
from ..resources import Resources
from .diagnostics import Diagnosis, Diagnostics


@dataclass
class _Shared:
    """What merges of the same inputs have in common."""

    inputs: Inputs
    hashing: Hashing
    diagnostics: Diagnostics | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Merges:
    """Merges the trials of a sweep, several at a time.

    Half of the memory is for the exact cores of the sites, which all trials share, half for the tensors in flight of each.
    """

    def __init__(self, recipe: Recipe, resources: Resources) -> None:
        self.recipe = recipe
        self.cores = Cores(resources.memory // 2)
        self.resources = replace(resources, memory=resources.memory - self.cores.limit)
        self.name = output_path(recipe, None).name
        """What a trial's folder is called: layouts ask for certain names."""
        self._known: dict[str, _Shared] = {}
        self._lock = threading.Lock()

    def check(self) -> Plan:
        """A plan of one of the recipes of the sweep, by headers only.

        Raises: RmkitError of the first that was tried, when none of them can be merged.
        """
        assert self.recipe.search is not None
        failures: list[RmkitError] = []
        self._shared(self.recipe)
        for drawn in self.recipe.search.contexts(plain_data(self.recipe)):
            try:
                return self._plan(vary(self.recipe, drawn))[0]
            except RmkitError as error:
                failures.append(error)
        raise failures[0]

    def digests(self) -> list[list[str]]:
        """Hashes of the files of every adapter; all of them are read once."""
        shared = self._shared(self.recipe)
        known = shared.hashing.results()
        return [[known[path].sha256 for path in adapter.files] for adapter in shared.inputs.adapters]

    def write(self, recipe: Recipe, folder: Path) -> None:
        """Merge into a folder, which is made; what lies there is replaced.

        Raises: RmkitError.
        """
        shutil.rmtree(folder, ignore_errors=True)
        if recipe.output.kind == "model":
            merge(recipe, folder, resources=self.resources, restart=True, card=False)
            return
        plan, shared = self._plan(recipe)
        check_output_name(plan.target, folder)
        keep_inputs_apart(folder, shared.inputs, recipe)
        check_space(folder, plan.write_bytes)
        identities = shared.hashing.identities() if plan.random else [adapter.label for adapter in plan.adapters]
        plan = decide_ranks(plan, identities, self.resources, self.cores)
        folder.mkdir(parents=True)
        write_adapter(plan, folder, identities, self.resources, cores=self.cores)

    def diagnose(self, recipe: Recipe) -> Diagnosis:
        """The figures of a merge, which is not written.

        Raises: RmkitError.
        """
        shared = self._shared(recipe)
        with shared.lock:
            if shared.diagnostics is None:
                shared.diagnostics = Diagnostics(shared.inputs, recipe, shared.hashing, self.resources, self.cores)
        return shared.diagnostics.diagnose(recipe)

    def close(self) -> None:
        """End the hashing of what nobody asks for any more."""
        for shared in self._known.values():
            shared.hashing.__exit__()

    def _plan(self, recipe: Recipe) -> tuple[Plan, _Shared]:
        shared = self._shared(recipe)
        return make_plan(recipe, shared.inputs), shared

    def _shared(self, recipe: Recipe) -> _Shared:
        """The inputs of a recipe; recipes that differ in settings alone share them."""
        entries = [entry.model_dump(exclude={"parameters"}) for entry in recipe.adapters]
        key = json.dumps([entries, recipe.base_model, recipe.allow, recipe.output.kind, recipe.dora])
        with self._lock:
            if key not in self._known:
                inputs = gather(recipe)
                self._known[key] = _Shared(inputs, Hashing(inputs))
            return self._known[key]

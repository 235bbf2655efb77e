"""The receipt: everything that is needed to repeat a merge, and everything that was measured on the way."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__, native
from ..checkpoint import Checkpoint
from ..conflict import Conflict
from ..disclosure import publishable
from ..memory import anonymous, peak_resident
from ..outcome import Outcome
from ..plan import Plan, serving
from ..recipe import Recipe
from ..recipe.front_matter import licence_beside
from ..resources import Resources
from ..sources import FileDigest


@dataclass(frozen=True)
class Receipt:
    """What `rmkit.json` holds. `content` is JSON; `path` is the finished output folder."""

    path: Path
    content: Mapping[str, Any]


def describe(
    plan: Plan,
    outcome: Outcome,
    digests: Mapping[Path, FileDigest],
    resources: Resources,
    written: Mapping[str, FileDigest],
    timings: Mapping[str, float],
    recipe_digest: str,
) -> dict[str, Any]:
    """The receipt's content. Paths are those the user wrote, with `~` for the home folder; recipes' texts stay as they are."""
    content = {
        **versions(),
        "device": _device(resources),
        "recipe": {
            "file": "rmkit_recipe.yaml",
            "sha256": recipe_digest,
            "name": plan.recipe.name,
            "seed": plan.recipe.seed,
            **_composition(plan.recipe),
        },
        "settings": {
            "merge_method": plan.recipe.merge_method,
            "missing": plan.recipe.missing,
            "extras": plan.recipe.extras if isinstance(plan.recipe.extras, str) else plan.recipe.extras.model_dump(),
        },
        "inputs": [
            {
                "name": adapter.label,
                "reference": plan.recipe.adapters[index].adapter,
                "repository": adapter.source.repository,
                "revision": adapter.source.revision,
                "layout": adapter.layout,
                "base_model": adapter.base,
                "license": licence_beside(adapter.source.folder),
                "files": [{"name": path.name, **asdict(digests[path])} for path in adapter.files],
            }
            for index, adapter in enumerate(plan.adapters)
        ],
        **({"base": _base(plan.base, digests)} if plan.base else {}),
        "output": {
            "kind": plan.recipe.output.kind,
            "layout": plan.target.layout,
            "dtype": plan.dtype,
            "rank": None if plan.fold else plan.rank,
            "files": [{"name": name, **asdict(digest)} for name, digest in sorted(written.items())],
        },
        "serving": serving(plan),
        "totals": {
            "sites": len(outcome.sites),
            "retained_energy": outcome.retained,
            "relative_truncation_error": max(0.0, 1.0 - outcome.retained) ** 0.5,
            "rounding_error": outcome.rounding,
            "norm": outcome.norm2**0.5,
            **({"resumed_jobs": outcome.resumed} if plan.fold else {}),
        },
        "sites": [_site(asdict(report), plan) for report in outcome.sites],
        "conflict": _conflict(outcome.conflict, plan),
        "dropped": list(plan.dropped),
        "notes": [*plan.notes, *_duplicates(plan, digests), *outcome.notes],
        "timings": dict(timings),
        "memory": _memory(outcome),
    }
    return publishable(content, verbatim=("text",))


def versions() -> dict[str, Any]:
    """The entries of every receipt that say which programs made the output."""
    import numpy
    import torch

    return {
        "rmkit": __version__,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "platform": f"{platform.system()} {platform.machine()}",
            "kernels": "native" if native.available() else "torch",
        },
    }


def _composition(recipe: Recipe) -> dict[str, Any]:
    """What the recipe was made from. The text of its files stands here where `rmkit_recipe.yaml` is not that text."""
    files: list[dict[str, Any]] = []
    for file in recipe.origin.files:
        about = {"reference": file.reference, "revision": file.revision, "size": file.size, "sha256": file.sha256}
        files.append({**about, "text": file.text} if recipe.origin.composed else about)
    return {"composed": recipe.origin.composed, "variables": dict(recipe.vars), "files": files}


def _base(base: Checkpoint, digests: Mapping[Path, FileDigest]) -> dict[str, Any]:
    """The base model the numbers depend on; files of a base from the Hub are known by its commit."""
    source = base.source
    return {
        "reference": source.reference,
        "repository": source.repository,
        "revision": source.revision,
        "license": licence_beside(source.folder),
        "files": [
            {"name": file.name, **(asdict(digests[file.path]) if file.path in digests else {"size": file.path.stat().st_size})}
            for file in base.files
        ],
    }


def _duplicates(plan: Plan, digests: Mapping[Path, FileDigest]) -> list[str]:
    """Inputs whose files hold the same bytes under different paths."""
    seen: dict[tuple[str, ...], int] = {}
    notes: list[str] = []
    for index, adapter in enumerate(plan.adapters):
        key = tuple(sorted(digests[path].sha256 for path in adapter.files))
        first = plan.adapters[seen.setdefault(key, index)]
        if first is not adapter and first.files != adapter.files:
            notes.append(f"input {index + 1} ({adapter.label}) equals input {seen[key] + 1} ({first.label}): same content")
    return notes


def _site(report: dict[str, Any], plan: Plan) -> dict[str, Any]:
    report["zero"] = [plan.adapters[index].label for index in report["zero"]]
    shares = report.pop("approximated")
    if shares:
        report["dora_energy_kept"] = {plan.adapters[index].label: share for index, share in shares.items()}
    return report


def _device(resources: Resources) -> dict[str, Any]:
    import torch

    kind = torch.device(resources.device)
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else platform.machine()
    return {"type": kind.type, "name": name, "workers": resources.workers, "memory": resources.memory}


def _conflict(conflict: Conflict | None, plan: Plan) -> dict[str, Any] | None:
    """Cosines of the inputs' updates, in the order of `inputs`, and the two that are least alike."""
    if conflict is None:
        return None
    lowest = None
    if conflict.lowest:
        first, second = conflict.lowest
        inputs = [plan.adapters[first].label, plan.adapters[second].label]
        lowest = {"inputs": inputs, "cosine": conflict.cosines[first][second]}
    return {"cosines": [list(row) for row in conflict.cosines], "lowest": lowest, "sites": conflict.sites}


def _memory(outcome: Outcome) -> dict[str, int]:
    now = peak_memory()
    most = max(outcome.memory.most, now.get("anonymous_at_end", 0))
    return {"peak_in_flight": outcome.peak_in_flight, "peak_anonymous": most, **now}


def peak_memory() -> dict[str, int]:
    """Bytes of this process as the kernel counts them: peak of everything resident, and what is anonymous now."""
    resident = peak_resident()
    return {} if resident is None else {"peak_resident": resident, "anonymous_at_end": anonymous()}

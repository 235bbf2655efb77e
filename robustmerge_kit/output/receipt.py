"""The receipt: everything that is needed to repeat a merge, and everything that was measured on the way."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..outcome import Outcome
from ..plan import Plan, serving_hint
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
    """The receipt's content. Paths are those the user wrote: no home folder of anybody is recorded."""
    import numpy
    import torch

    return {
        "rmkit": __version__,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "device": _device(resources),
        "recipe": {"file": "rmkit_recipe.yaml", "sha256": recipe_digest, "name": plan.recipe.name, "seed": plan.recipe.seed},
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
                "files": [{"name": path.name, **asdict(digests[path])} for path in adapter.files],
            }
            for index, adapter in enumerate(plan.adapters)
        ],
        "output": {
            "layout": plan.target.layout,
            "dtype": plan.dtype,
            "rank": plan.rank,
            "files": [{"name": name, **asdict(digest)} for name, digest in sorted(written.items())],
        },
        "serving": serving_hint(plan),
        "totals": {
            "sites": len(outcome.sites),
            "retained_energy": outcome.retained,
            "relative_truncation_error": max(0.0, 1.0 - outcome.retained) ** 0.5,
            "rounding_error": outcome.rounding,
            "norm": outcome.norm2**0.5,
        },
        "sites": [_site(asdict(report), plan) for report in outcome.sites],
        "dropped": list(plan.dropped),
        "notes": [*plan.notes, *_duplicates(plan, digests), *outcome.notes],
        "timings": dict(timings),
        "memory": {"peak_in_flight": outcome.peak_in_flight, **peak_memory()},
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
    return report


def _device(resources: Resources) -> dict[str, Any]:
    import torch

    kind = torch.device(resources.device)
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else platform.processor() or platform.machine()
    return {"type": kind.type, "name": name, "workers": resources.workers, "memory": resources.memory}


def peak_memory() -> dict[str, int]:
    """Bytes of this process as the kernel counts them: peak of everything resident, and what is anonymous now."""
    wanted = {"VmHWM": "peak_resident", "RssAnon": "anonymous_at_end"}
    found: dict[str, int] = {}
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        key, _, value = line.partition(":")
        if key in wanted:
            found[wanted[key]] = int(value.split()[0]) * 1024
    return found


def summary(content: Mapping[str, Any], folder: Path) -> Sequence[str]:
    """A few lines for a human, from a receipt."""
    totals, output = content["totals"], content["output"]
    rank = f"rank {output['rank']}" if output["rank"] else "ranks by site"
    lines = [
        f"merged {len(content['inputs'])} adapters at {totals['sites']} sites into {folder}",
        f"{content['settings']['merge_method']}, {rank}, {output['dtype']}, {content['timings']['total']:.2f} s",
        f"energy kept {totals['retained_energy']:.4%}, rounding error {totals['rounding_error']:.2e}",
    ]
    if totals["retained_energy"] < 0.9:
        lines.append(
            f"warning: the rank limit loses {1 - totals['retained_energy']:.1%} of the merged update; "
            "raise output.rank to keep more"
        )
    if content["serving"]:
        lines.append(content["serving"].replace("FOLDER", str(folder)))
    return lines

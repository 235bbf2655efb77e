"""A merge into a base of several files that waits on the way, and who of the processes at work on it does what."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from small_adapters import run, sites, write_adapters, write_recipe
from small_bases import all_bytes, tensors, write_base

from robustmerge_kit.batch.claim import claim_file

SHARDS = 4


def write_models(place: Path) -> None:
    """Under `models` a recipe `slow` for a base in SHARDS files; every second of its 12 sites waits for the file `go`."""
    write_base(place / "base", tensors(6), shards=SHARDS)
    write_adapters(place / "for_base", 2, where=sites(6))
    (place / "models").mkdir()
    waiting = {"match": "*up_proj", "parameters": {"until": str(place / "go")}}
    recipe(place, "slow", merge_method="slow", parameters={"seconds": 0.02}, overrides=[waiting])


def recipe(place: Path, name: str, **keys: Any) -> None:
    adapters = [f"../for_base/adapter{number}" for number in range(2)]
    content = {"adapters": adapters, "base_model": "../base", "output": {"kind": "model"}, **keys}
    (place / "models" / f"{name}.yaml").write_text(json.dumps(content))


def merged_alone(place: Path) -> dict[str, bytes]:
    """What `slow` makes, by the method that it is a slow form of, in one piece; but for the recipe."""
    adapters = [place / "for_base" / f"adapter{number}" for number in range(2)]
    alone = write_recipe(place, adapters, "task_arithmetic", base_model="base", output={"kind": "model"})
    return weights(run(alone, place / "model_alone", overwrite=True).path)


def weights(folder: Path) -> dict[str, bytes]:
    """The model's files, without what tells of recipe and merge."""
    return {name: content for name, content in all_bytes(folder).items() if not name.startswith("rmkit")}


def _open_files(process: psutil.Process) -> list[str]:
    try:
        return [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return []


def leader_and_helper(processes: Iterable[psutil.Process], target: Path) -> list[psutil.Process]:
    """Who holds the claim of a merge, and who helps, once both have finished a site of a part and wait; else nobody."""
    opened = {process: _open_files(process) for process in processes}
    stage = f".{target.name}.rmkit-part-"
    busy = [process for process, files in opened.items() if any(stage in file and "journal-" in file for file in files)]
    leaders = [process for process in busy if str(claim_file(target)) in opened[process]]
    begun = [path for path in target.parent.glob(f"{stage}*/.rmkit-journal-*") if '"site ' in path.read_text()]
    return [*leaders, *(each for each in busy if each not in leaders)] if leaders and len(busy) == len(begun) == 2 else []

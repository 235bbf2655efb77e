"""The recipes of the paper's rows, planned against a Hub on 127.0.0.1 that holds small adapters of the released names."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mm_mergebench.candidates import PAPER, RECIPES, RELEASED, plan_merges, read
from mm_samples import NAMES, ROOT, write_adapters

from robustmerge_kit.errors import RmkitError
from robustmerge_kit.merge import merge, prepare
from robustmerge_kit.recipe import load_recipe

sys.path.insert(0, str(ROOT / "tests" / "inputs"))
from hub_stub import Hub, serving
from local_server import hub_environment

FILES = sorted(path for path in RECIPES.rglob("*.yaml") if path.stem != "released")
BASELINES = [name for name in PAPER if name not in ("zero-shot", "individual")]

PLAN_ALL = """
import sys
from pathlib import Path
from robustmerge_kit.merge import prepare
from robustmerge_kit.recipe import load_recipe
for file in sys.argv[1:]:
    plan = prepare(load_recipe(Path(file)))
    print(Path(file).stem, plan.target.layout, len(plan.steps), *[adapter.source.reference for adapter in plan.adapters])
"""


def test_every_row_of_the_paper_that_can_be_run_has_a_recipe() -> None:
    assert [name for name in BASELINES if not (RECIPES / f"{name}.yaml").is_file()] == []
    assert len(FILES) == len(BASELINES) + 4


def test_all_are_planned_from_the_hub(tmp_path: Path) -> None:
    folders = {name: write_adapters(tmp_path, (name,)) / f"LLaVA_7B_lora_r16_{name}" for name in NAMES}
    held = {
        f"{RELEASED}/{folder.name}": {file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders.values()
    }
    with serving(Hub(held)) as hub:
        environment = hub_environment(hub.url, tmp_path / "cache", PYTHONPATH=str(ROOT))
        command = [sys.executable, "-c", PLAN_ALL, *map(str, FILES)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [file.stem for file in FILES]
    for line in lines:
        assert line[1:3] == ["llava", "14"]
        assert line[3:] == [f"{RELEASED}/LLaVA_7B_lora_r16_{name}" for name in NAMES]


def test_robustmerge_is_the_released_recipe() -> None:
    ours = load_recipe(RECIPES / "robustmerge.yaml")
    released = load_recipe(ROOT / "recipes" / "llava_robustmerge.yaml")
    assert [entry.adapter for entry in ours.adapters] == [entry.adapter for entry in released.adapters]
    assert (ours.merge_method, ours.parameters, ours.extras) == (released.merge_method, released.parameters, released.extras)


def test_task_arithmetic_is_the_released_code_without_pruning_and_scaling(tmp_path: Path) -> None:
    """delta = gain^2 / n * (sum of B)(sum of A) at gain 2 and n = 8; here over eight adapters of one scale, 2."""
    place = write_adapters(tmp_path / "adapters")
    (planned,) = plan_merges(["task_arithmetic"], str(place), tmp_path)
    merge(planned.recipe, planned.target)
    site = "base_model.model.model.layers.0.mlp.up_proj"

    def load(folder: Path, side: str) -> torch.Tensor:
        return torch.load(folder / "adapter_model.bin", weights_only=True)[f"{site}.lora_{side}.weight"].double()

    folders = [place / f"LLaVA_7B_lora_r16_{name}" for name in NAMES]
    expected = 4 / 8 * 2.0 * sum(load(one, "B") for one in folders) @ sum(load(one, "A") for one in folders)
    found = load(planned.target, "B") @ load(planned.target, "A")
    scale = scale_of(planned.target)
    assert torch.allclose(scale * found, expected, rtol=1e-5, atol=1e-5)


def scale_of(folder: Path) -> float:
    return next(iter(read(str(folder), "merged").sites.values())).scale


def test_a_merge_is_kept_while_recipe_and_inputs_are_the_same(tmp_path: Path) -> None:
    place = write_adapters(tmp_path / "adapters")
    (planned,) = plan_merges(["deltas/ties"], str(place), tmp_path)
    assert planned.target == tmp_path / "merged" / "llava-v1.5-7b-lora-deltas-ties"
    planned.carry_out(overwrite=False)
    first = (planned.target / "rmkit.json").stat().st_mtime_ns
    planned.carry_out(overwrite=False)
    assert (planned.target / "rmkit.json").stat().st_mtime_ns == first
    path = place / "LLaVA_7B_lora_r16_REC" / "adapter_model.bin"
    factors = torch.load(path, weights_only=True)
    torch.save({name: 2 * value for name, value in factors.items()}, path)
    with pytest.raises(RmkitError, match="cannot be used again: its input LLaVA_7B_lora_r16_REC was another"):
        planned.carry_out(overwrite=False)
    planned.carry_out(overwrite=True)
    assert (planned.target / "rmkit.json").stat().st_mtime_ns != first


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    place = write_adapters(tmp_path / "adapters")
    file = tmp_path / "mine.yaml"
    names = "\n".join(f"  - adapters/LLaVA_7B_lora_r16_{name}" for name in NAMES[:2])
    file.write_text(f"merge_method: linear\nadapters:\n{names}\nextras: mean\noutput: {{format: llava}}\n")
    (planned,) = plan_merges([str(file)], str(place), tmp_path / "out")
    assert planned.name == "mine"
    assert prepare(planned.recipe, planned.target).steps

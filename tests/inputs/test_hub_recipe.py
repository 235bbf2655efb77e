"""The recipe of the paper's eight adapters, planned and run against a Hub on 127.0.0.1 that holds small ones of their names."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stub import MAIN, Hub, serving
from local_server import hub_environment
from small_adapters import write_adapter

from robustmerge_kit.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "llava_robustmerge.yaml"
CONFIG = {"model_type": "llava_llama", "hidden_size": 10, "num_hidden_layers": 2, "vocab_size": 50, "mm_hidden_size": 4}


def repository(place: Path, seed: int) -> dict[str, bytes]:
    folder = write_adapter(place, seed, r=16, alpha=32, dtype=torch.bfloat16)
    projector = io.BytesIO()
    torch.save({"base_model.model.model.mm_projector.0.weight": torch.full((10, 4), float(seed))}, projector)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {
        "non_lora_trainables.bin": projector.getvalue(),
        "config.json": json.dumps(CONFIG).encode(),
        "training_args.bin": b"not wanted",
    }


@pytest.mark.parametrize("command", ["plan", "run"])
def test_the_papers_recipe_against_a_hub(command: str, tmp_path: Path) -> None:
    names = [entry.adapter for entry in load_recipe(RECIPE).adapters]
    repositories = {name: repository(tmp_path / name, seed) for seed, name in enumerate(names)}
    out = tmp_path / "llava-lora-out"
    with serving(Hub(repositories)) as hub:
        done = subprocess.run(
            [sys.executable, "-m", "robustmerge_kit", command, str(RECIPE), str(out), "--json"],
            env=hub_environment(hub.url, tmp_path / "cache"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not any("training_args" in path for _, path, _ in hub.requests)
    answer = json.loads(done.stdout)
    assert [item["name"] for item in answer["inputs"]] == [name.partition("/")[2] for name in names]
    if command == "plan":
        assert not out.exists()
        assert answer["rank"] == 16
        return
    assert {item["revision"] for item in answer["inputs"]} == {MAIN}
    projector = torch.load(out / "non_lora_trainables.bin", weights_only=True)
    assert torch.equal(projector["base_model.model.model.mm_projector.0.weight"], torch.full((10, 4), 3.5))
    assert json.loads((out / "config.json").read_text()) == CONFIG

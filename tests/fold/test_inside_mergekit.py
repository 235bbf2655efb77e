"""The documented command: mergekit's own program merges whole models by RobustMerge."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import llama

pytest.importorskip("mergekit", reason="mergekit is not installed")

COMMAND = "import robustmerge_kit.for_mergekit; from mergekit.scripts.run_yaml import main; main()"
RANK = 4
RECIPE = """
merge_method: robustmerge
base_model: base
models:
  - model: one
    parameters: {weight: 0.7}
  - model: two
parameters: {rank: 4, variant: paper, density: 1.0, gain: 2.0}
dtype: float32
"""


@pytest.mark.slow
def test_mergekit_yaml_writes_the_merged_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "base")
    base = load_file(tmp_path / "base" / "model.safetensors")
    for name in ("one", "two"):
        moved = {}
        for key, value in base.items():
            far = value.ndim == 2 and "proj" in key
            moved[key] = value + (torch.randn(len(value), RANK) @ torch.randn(RANK, value.shape[1]) / 50 if far else 0.0)
        model.save_pretrained(tmp_path / name)
        save_file(moved, tmp_path / name / "model.safetensors", {"format": "pt"})
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "recipe.yaml", "out", "--no-write-model-card", "--no-copy-tokenizer"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "out").glob("*.safetensors")
    got = load_file(path)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert got.keys() == base.keys()
    changed = 0
    for key, start in base.items():
        # Without pruning every scale is 1, so the adapters' shares are 1/2 each, and gain 2 restores their weighted sum.
        wanted = start + 0.7 * (one[key] - start) + (two[key] - start)
        assert torch.allclose(got[key], wanted, atol=2e-5), key
        changed += not torch.equal(got[key], start)
    assert changed == sum("proj" in key for key in base)

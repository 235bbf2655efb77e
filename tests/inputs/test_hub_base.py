"""Base models from the Hub, against a stub on 127.0.0.1: one form of the weights is fetched, the commit is recorded."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_stub import MAIN, Hub, serving
from local_server import hub_environment
from small_adapters import read_deltas, write_adapter
from small_bases import read_weights, tensors, write_base

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    base = write_base(tmp_path / "made", tensors(), shards=2)
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    others = {
        "README.md": b"card",
        "pytorch_model.bin": b"old",
        "consolidated.safetensors": b"x",
        "original/params.json": b"{}",
    }
    with serving(Hub({"org/base": {**files, **others}, "org/none": {"config.json": b"{}"}})) as running:
        yield running


def fold(hub: Hub, place: Path, base: str, **environment: str) -> subprocess.CompletedProcess[str]:
    write_adapter(place / "a")
    recipe = {"merge_method": "linear", "base_model": base, "adapters": ["a"], "output": {"kind": "model"}}
    (place / "r.yaml").write_text(json.dumps(recipe))
    variables = hub_environment(hub.url, place / "hf", **environment)
    command = [sys.executable, "-m", "robustmerge_kit", "run", "r.yaml", "out", "--overwrite", "-q"]
    return subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, timeout=120)


def test_a_base_is_fetched_shard_by_shard_and_found_again_offline(hub: Hub, tmp_path: Path) -> None:
    done = fold(hub, tmp_path, "org/base")
    assert done.returncode == 0, done.stderr
    assert not {"pytorch_model.bin", "consolidated.safetensors", "original/params.json"} & set(hub.fetched())
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"} <= set(hub.fetched())
    receipt = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    assert (receipt["base"]["repository"], receipt["base"]["revision"]) == ("org/base", MAIN)
    found, before = read_weights(tmp_path / "out"), tensors()
    for site, delta in read_deltas(tmp_path / "a").items():
        torch.testing.assert_close(
            found[f"{site}.weight"].double(), before[f"{site}.weight"].double() + delta, rtol=0, atol=1e-5
        )
    asked = len(hub.requests)
    again = fold(hub, tmp_path, "org/base", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("base", "message"),
    [("org/none", "holds no model weights"), ("org/absent", "no repository org/absent"), ("org/base@v9", "no revision 'v9'")],
)
def test_bases_that_are_not_there(hub: Hub, base: str, message: str, tmp_path: Path) -> None:
    done = fold(hub, tmp_path, base)
    assert done.returncode == 3
    assert f"base_model: {base}" in done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()

"""`output.for`: what each serving program gets, and what is refused for it."""

import json

import pytest
import torch
from small_adapters import merged, read_deltas, run, sites, write_adapter, write_adapters, write_recipe

from robustmerge_kit.errors import PlanError
from robustmerge_kit.merge import prepare

HEADS = {"classifier.weight": torch.ones(2, 10)}


@pytest.mark.parametrize(
    ("rank", "written"), [("auto", 8), (3, 8), (9, 16), (40, 64), (129, 256), (300, 320), ({"energy": 0.5}, 8)], ids=str
)
def test_vllm_ranks_are_padded_to_the_next_it_accepts(tmp_path, rank, written):
    adapters = write_adapters(tmp_path, 2)
    plain = merged(tmp_path, adapters, output={"rank": rank})
    receipt = run(write_recipe(tmp_path, adapters, output={"for": "vllm", "rank": rank}), tmp_path / "served")
    config = json.loads((receipt.path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == written
    for site, delta in read_deltas(receipt.path).items():
        torch.testing.assert_close(delta, plain[site], rtol=1e-6, atol=1e-9)
    assert f"--max-lora-rank {written}" in receipt.content["serving"]


@pytest.mark.parametrize(
    ("program", "adapter", "keys", "message"),
    [
        ("vllm", {}, {"output": {"rank": 513}}, "rank 513 is more than vLLM's largest, 512"),
        ("vllm", {"extras": HEADS}, {}, "vllm takes no tensors beside the LoRA factors; there are 1"),
        ("tgi", {"extras": HEADS}, {}, "tgi takes no tensors beside the LoRA factors; there are 1"),
        ("gguf", {}, {"output": {"dtype": "bfloat16"}}, "wants float32 or float16, not bfloat16"),
        ("gguf", {"base_model_name_or_path": None}, {}, "reads the base's config"),
        ("vllm", {"where": {"lm_head": (12, 10)}}, {}, "1 sites are embeddings, convolutions or lm_head, the first: lm_head"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_a_program_cannot_load_is_refused(tmp_path, program, adapter, keys, message):
    adapters = [write_adapter(tmp_path / str(i), i, **adapter) for i in range(2)]
    output = {**keys.get("output", {}), "for": program}
    with pytest.raises(PlanError, match=r"output\.for") as caught:
        prepare(write_recipe(tmp_path, adapters, output=output))
    assert message in str(caught.value)
    assert caught.value.hint


def test_heads_are_fine_for_a_server_once_dropped(tmp_path):
    adapters = [write_adapter(tmp_path / str(i), i, extras=HEADS) for i in range(2)]
    plan = prepare(write_recipe(tmp_path, adapters, extras="drop", output={"for": "tgi"}))
    assert len(plan.steps) == len(sites())


def test_without_a_program_nothing_is_padded_and_a_large_rank_is_pointed_out(tmp_path):
    adapters = [write_adapter(tmp_path / str(i), i, r=12) for i in range(2)]
    receipt = run(write_recipe(tmp_path, adapters), tmp_path / "out")
    assert json.loads((receipt.path / "adapter_config.json").read_text())["r"] == 24
    assert receipt.content["serving"] == "rank 24: vLLM needs --max-lora-rank 32, its default is 16"


def test_folding_is_refused_rather_than_ignored(tmp_path):
    with pytest.raises(PlanError, match=r"output\.kind: model is not available"):
        prepare(write_recipe(tmp_path, write_adapters(tmp_path, 2), output={"kind": "model"}))

"""`output.for`: what each serving program gets, and what is refused for it."""

import json

import pytest
import torch
from safetensors.torch import save_file
from small_adapters import merged, read_deltas, run, sites, write_adapter, write_adapters, write_recipe

from robustmerge_kit.errors import PlanError
from robustmerge_kit.merge import prepare
from robustmerge_kit.output import summary

HEADS = {"classifier.weight": torch.ones(2, 10)}
CONV = {"base_model.model.conv.lora_A.weight": torch.ones(4, 3, 3), "base_model.model.conv.lora_B.weight": torch.ones(5, 4, 1)}
EMBEDDING = {
    "base_model.model.embed.lora_embedding_A": torch.ones(4, 9),
    "base_model.model.embed.lora_embedding_B": torch.ones(5, 4),
}


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
    served = receipt.content["serving"]
    assert served["command"] == f"vllm serve org/tiny --enable-lora --max-lora-rank {written} --lora-modules recipe=FOLDER"
    assert summary(receipt.content, receipt.path)[-1].endswith(f"--lora-modules recipe={receipt.path}")
    assert served["command"] in (receipt.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("program", "adapter", "keys", "message"),
    [
        ("vllm", {}, {"output": {"rank": 513}}, "rank 513 is more than vLLM's largest, 512"),
        ("vllm", {"extras": HEADS}, {}, "vllm takes no tensors beside the LoRA factors; there are 1"),
        ("tgi", {"extras": HEADS}, {}, "tgi takes no tensors beside the LoRA factors; there are 1"),
        ("sglang", {"extras": HEADS}, {}, "sglang takes no tensors beside the LoRA factors; there are 1"),
        ("gguf", {"extras": HEADS}, {}, "gguf takes no tensors beside the LoRA factors; there are 1"),
        ("sglang", {"tensors": CONV}, {}, "SGLang loads linear modules and embeddings only; 1 sites are"),
        ("vllm", {"tensors": EMBEDDING}, {}, "vLLM loads linear modules only"),
        ("tgi", {}, {"output": {"weights": "bin"}}, "TGI loads safetensors, not adapter_model.bin"),
        ("vllm", {}, {"output": {"uniform": False}}, "writes rank_pattern and alpha_pattern, which servers do not read"),
        ("gguf", {}, {"output": {"dtype": "bfloat16"}}, "wants float32 or float16, not bfloat16"),
        ("gguf", {"base_model_name_or_path": None}, {}, "reads the base's config"),
        ("vllm", {"where": {"lm_head": (12, 10)}}, {}, "fused experts or lm_head, the first: lm_head"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_a_program_cannot_load_is_refused(tmp_path, program, adapter, keys, message):
    adapters = [write_adapter(tmp_path / str(i), i, **adapter) for i in range(2)]
    output = {**keys.get("output", {}), "for": program}
    with pytest.raises(PlanError, match=r"output\.(for|uniform)") as caught:
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
    note = "rank 24: vLLM needs --max-lora-rank 32, its default is 16"
    assert receipt.content["serving"] == {"for": None, "command": None, "note": note}
    assert summary(receipt.content, receipt.path)[-1] == note
    assert note in (receipt.path / "README.md").read_text()


COMMANDS = {
    "vllm": "vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules recipe=FOLDER",
    "sglang": "python -m sglang.launch_server --model-path {base} --enable-lora --max-lora-rank 8 --lora-paths recipe=FOLDER",
    "tgi": "text-generation-launcher --model-id {base} --lora-adapters recipe=FOLDER",
    "gguf": "python convert_lora_to_gguf.py --outtype f16 --outfile recipe.gguf FOLDER "
    "&& llama-server -m BASE.gguf --lora recipe.gguf",
    "peft": None,
}


@pytest.mark.parametrize("program", COMMANDS)
def test_the_folder_holds_what_servers_read_and_the_receipt_how_to_start_them(tmp_path, program):
    adapters = write_adapters(tmp_path, 2, base_model_name_or_path="org/x; rm -rf ~")
    receipt = run(write_recipe(tmp_path, adapters, output={"for": program}), tmp_path / "out")
    names = {path.name for path in receipt.path.iterdir()}
    assert {name for name in names if not name.startswith("rmkit")} == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md")
    }
    config = json.loads((receipt.path / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"], config["bias"]) == ({}, {}, False, "none")
    assert isinstance(config["target_modules"], list)
    expected = COMMANDS[program]
    assert receipt.content["serving"]["command"] == (expected and expected.format(base="'org/x; rm -rf ~'"))


BASE = {f"{site}.weight": torch.zeros(shape) for site, shape in sites().items()}


@pytest.mark.parametrize("program", ["vllm", "sglang", "tgi", "gguf"])
@pytest.mark.parametrize(
    ("base", "message"),
    [
        (BASE, None),
        ({f"language_model.{name}": value for name, value in BASE.items()}, "4 of 4 modules are not in base_model"),
        (BASE | {"model.layers.1.up_proj.weight": torch.zeros(14, 11)}, "1 of 4 modules .* another shape there"),
    ],
    ids=["fits", "another prefix", "another shape"],
)
def test_names_are_compared_with_a_base_on_disk(tmp_path, program, base, message):
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2), base_model="base", output={"for": program})
    if message is None:
        assert prepare(recipe).steps
        return
    with pytest.raises(PlanError, match=rf"output\.for: {message}(?s:.*){program} would leave them out"):
        prepare(recipe)


def test_a_folded_model_is_served_by_itself(tmp_path):
    (tmp_path / "base").mkdir()
    save_file(BASE, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base" / "config.json").write_text("{}")
    keys = {"base_model": "base", "output": {"kind": "model", "for": "vllm", "rank": "sum"}}
    receipt = run(write_recipe(tmp_path, write_adapters(tmp_path, 2), **keys), tmp_path / "out")
    assert receipt.content["serving"] == {"for": "vllm", "command": "vllm serve FOLDER", "note": None}
    card = (receipt.path / "README.md").read_text()
    assert "base_model_relation: merge\nlibrary_name: transformers" in card

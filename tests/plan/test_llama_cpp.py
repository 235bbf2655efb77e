"""llama.cpp's own converter on what `output.for: gguf` writes; needs a checkout of llama.cpp, named by RMKIT_LLAMA_CPP."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_adapters import run, write_adapter, write_recipe

CONFIG = """{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 64
}"""
SITES = {
    f"model.layers.{i}.{name}": shape
    for i in (0, 1)
    for name, shape in {"self_attn.v_proj": (16, 32), "self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 64)}.items()
}


@pytest.fixture
def llama_cpp() -> Path:
    place = Path(os.environ.get("RMKIT_LLAMA_CPP", ""))
    if not (place / "convert_lora_to_gguf.py").is_file():
        pytest.skip("RMKIT_LLAMA_CPP does not name a checkout of llama.cpp")
    return place


READ = """
import sys, torch
from gguf import GGUFReader
reader = GGUFReader(sys.argv[1])
alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
torch.save({"alpha": torch.tensor(alpha)} | {each.name: torch.tensor(each.data.copy()) for each in reader.tensors}, sys.argv[2])
"""


def test_every_factor_arrives(tmp_path: Path, llama_cpp: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(CONFIG)
    adapters = [write_adapter(tmp_path / str(i), i, where=SITES, r=4 + i) for i in (0, 1)]
    output = {"for": "gguf", "dtype": "float32"}
    receipt = run(write_recipe(tmp_path, adapters, base_model="base", output=output), tmp_path / "out")
    command = receipt.content["serving"]["command"].partition(" && ")[0].replace("FOLDER", str(receipt.path))
    arguments = command.replace("--outtype f16", "--outtype f32").split()[2:]
    env = {**os.environ, "PYTHONPATH": str(llama_cpp / "gguf-py")}
    for arguments_of in ([str(llama_cpp / "convert_lora_to_gguf.py"), *arguments], ["-c", READ, "recipe.gguf", "read.pt"]):
        subprocess.run([sys.executable, *arguments_of], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)
    found = torch.load(tmp_path / "read.pt", weights_only=True)
    stored = load_file(receipt.path / "adapter_model.safetensors")
    assert float(found.pop("alpha")) == receipt.content["output"]["rank"]
    assert len(found) == len(stored)
    names = {"self_attn.v_proj": "attn_v", "self_attn.q_proj": "attn_q", "mlp.down_proj": "ffn_down"}
    for site in SITES:
        layer, leaf = site.split(".")[2], site.split(".", 3)[3]
        a, b = (found[f"blk.{layer}.{names[leaf]}.weight.lora_{half}"] for half in "ab")
        assert torch.equal(a, stored[f"base_model.model.{site}.lora_A.weight"])
        want = stored[f"base_model.model.{site}.lora_B.weight"]
        # the rows of q and k change places, since llama.cpp rotates other pairs of them
        assert torch.equal(*((b, want) if leaf != "self_attn.q_proj" else (b.sort(0).values, want.sort(0).values)))

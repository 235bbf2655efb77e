"""A Llama-shaped base in bfloat16 and LoRA adapters of it, random numbers: `python benchmarks/fold_cases.py FOLDER`."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class FoldCase:
    """Shape of a base and its adapters; the default has 853 million parameters."""

    layers: int = 16
    hidden: int = 2048
    inner: int = 5632
    heads: int = 32
    key_heads: int = 8
    vocabulary: int = 32000
    shard: int = 400_000_000
    adapters: int = 8
    rank: int = 16
    alpha: int = 32

    def linears(self) -> dict[str, tuple[int, int]]:
        """Module path -> (d_out, d_in)."""
        narrow = self.hidden // self.heads * self.key_heads
        block = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (narrow, self.hidden),
            "self_attn.v_proj": (narrow, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }
        return {f"model.layers.{layer}.{name}": shape for layer in range(self.layers) for name, shape in block.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors of the base, in the order of a checkpoint."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        found |= {f"{site}.weight": shape for site, shape in self.linears().items()}
        for layer in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"model.layers.{layer}.{norm}.weight"] = (self.hidden,)
        return {**found, "model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())


def write_base(folder: Path, case: FoldCase) -> Path:
    """Weights in shards with an index, one shard in memory at a time."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": case.hidden,
        "intermediate_size": case.inner,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.key_heads,
        "vocab_size": case.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in case.shapes().items():
        nbytes = 2 * math.prod(shape)
        if groups[-1] and size + nbytes > case.shard:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    draw = torch.Generator().manual_seed(0)
    mapping: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: _weight(case.shapes()[name], draw) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        mapping |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 2 * case.parameters}, "weight_map": mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _weight(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=draw) * 0.02
    return value.bfloat16()


def write_adapters(folder: Path, case: FoldCase, base: Path) -> list[Path]:
    """One PEFT folder per adapter, float32; A as at the start of training, B small, so that |dW| is about 1 % of |W|."""
    places: list[Path] = []
    for adapter in range(1, case.adapters + 1):
        draw = torch.Generator().manual_seed(100 + adapter)
        tensors: dict[str, Tensor] = {}
        for site, (d_out, d_in) in case.linears().items():
            bound = 1 / math.sqrt(d_in)
            prefix = f"base_model.model.{site}"
            tensors[f"{prefix}.lora_A.weight"] = torch.empty(case.rank, d_in).uniform_(-bound, bound, generator=draw)
            tensors[f"{prefix}.lora_B.weight"] = torch.empty(d_out, case.rank).normal_(0, 0.002, generator=draw)
        place = folder / f"lora{adapter}"
        place.mkdir(parents=True)
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": case.rank,
            "lora_alpha": case.alpha,
            "target_modules": sorted({site.rpartition(".")[2] for site in case.linears()}),
        }
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2))
        places.append(place)
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=FoldCase.layers)
    given = parser.parse_args()
    case = FoldCase(layers=given.layers)
    write_adapters(given.folder, case, write_base(given.folder / "base", case))


if __name__ == "__main__":
    main()

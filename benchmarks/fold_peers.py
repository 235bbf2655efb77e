"""One peer's way to fold adapters into a base, as a process of its own: `fold_peers.py WAY BASE OUT ADAPTER...`.

WAY: products (only the float32 products of all sites, nothing is read or written), peft (add_weighted_adapter with `cat`,
merge_and_unload, save), imports (what rmkit imports), mergekit:METHOD (mergekit-yaml with an empty cache of baked models; :warm
with what the run before left).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

WEIGHT = 0.5
DENSITY = 0.5


def products(adapters: Sequence[str]) -> float:
    """Seconds of `addmm` in float32 over all sites, once per site, with all adapters side by side."""
    import torch
    from safetensors import safe_open

    files = [safe_open(Path(adapter) / "adapter_model.safetensors", "pt") for adapter in adapters]
    names = sorted(name for name in files[0].keys() if ".lora_A." in name)  # noqa: SIM118
    seconds = 0.0
    for name in names:
        a = torch.cat([file.get_tensor(name).float() for file in files])
        b = torch.cat([file.get_tensor(name.replace("lora_A", "lora_B")).float() for file in files], 1)
        weight = torch.zeros(b.shape[0], a.shape[1])
        start = time.perf_counter()
        torch.addmm(weight, b, a, out=weight)
        seconds += time.perf_counter() - start
    return seconds


def peft(base: str, out: str, adapters: Sequence[str]) -> None:
    """PEFT's exact way: concatenate, fold, save."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    names = [f"a{i}" for i in range(len(adapters))]
    model = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(adapter, adapter_name=name)
    model.add_weighted_adapter(names, [WEIGHT] * len(names), "merged", combination_type="cat")
    model.set_adapter("merged")
    model.merge_and_unload(adapter_names=["merged"]).save_pretrained(out, max_shard_size="400MB")


def mergekit(method: str, base: str, out: str, adapters: Sequence[str], cache: Path) -> None:
    """`mergekit-yaml` on `base+lora` models."""
    parameters = {"weight": WEIGHT, **({"density": DENSITY} if method == "ties" else {})}
    recipe = {
        "merge_method": method,
        "base_model": base,
        "dtype": "bfloat16",
        "models": [{"model": f"{base}+{adapter}", "parameters": parameters} for adapter in adapters],
    }
    path = cache.with_suffix(".yaml")
    path.write_text(json.dumps(recipe))
    command = [str(Path(sys.executable).with_name("mergekit-yaml")), str(path), out, "--lora-merge-cache", str(cache)]
    subprocess.run(
        [*command, "--lora-merge-dtype", "bfloat16", "--out-shard-size", "200M", "--no-write-model-card"], check=True
    )


def main() -> None:
    way, base, out, *adapters = sys.argv[1:]
    if way == "products":
        print(json.dumps({"seconds": products(adapters)}))
    elif way == "imports":
        import robustmerge_kit.merge  # noqa: F401
    elif way == "peft":
        peft(base, out, adapters)
    else:
        mergekit(way.split(":")[1], base, out, adapters, Path(out).with_name("baked"))


if __name__ == "__main__":
    main()

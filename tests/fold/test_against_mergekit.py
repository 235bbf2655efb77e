"""The model a mergekit recipe asks for: equal to what mergekit itself writes in float32, where its arithmetic is right."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_adapters import run, write_adapter
from tiny_models import llama

pytestmark = pytest.mark.filterwarnings("ignore")

RECIPES = {
    "linear": "merge_method: linear\n{models}dtype: float32\n",
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: base\n{models}dtype: float32\n",
    "gradient": "merge_method: task_arithmetic\nbase_model: base\n{gradient}dtype: float32\n",
    "ties": "merge_method: ties\nbase_model: base\n{dense}parameters: {{normalize: true}}\ndtype: float32\n",
    "sce": "merge_method: sce\nbase_model: base\n{plain}parameters: {{select_topk: 0.6}}\ndtype: float32\n",
}
WEIGHTS = (0.3, 0.5, 0.4)


def _models(parameters: list[str]) -> str:
    lines = [f"  - model: base+a{i}\n    parameters: {{{each}}}\n" for i, each in enumerate(parameters)]
    return "models:\n" + "".join(lines)


def _recipe(name: str) -> str:
    return RECIPES[name].format(
        models=_models([f"weight: {w}" for w in WEIGHTS]),
        gradient=_models(["weight: [0.1, 0.9]", "weight: [1.0, 0.0, 0.5]", "weight: 0.2"]),
        dense=_models([f"weight: {w}, density: 0.6" for w in WEIGHTS]),
        plain=_models([""] * 3).replace("    parameters: {}\n", ""),
    )


def _case(place: Path) -> None:
    torch.manual_seed(0)
    model = llama(num_key_value_heads=4, tie_word_embeddings=False)
    model.save_pretrained(place / "base")
    where = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "o_proj", "down_proj"))
    }
    for i in range(3):
        write_adapter(place / f"a{i}", i, where=where, base_model_name_or_path="base")


@pytest.mark.parametrize("name", RECIPES)
def test_mergekit_writes_the_same_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_merge = pytest.importorskip("mergekit.merge").run_merge
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    _case(tmp_path)
    (tmp_path / "recipe.yaml").write_text(_recipe(name))
    import yaml

    theirs: Any = MergeConfiguration.model_validate(yaml.safe_load(_recipe(name)))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, lora_merge_cache=str(tmp_path / "baked"), quiet=True)
    run_merge(theirs, str(tmp_path / "theirs"), options)
    out = run(tmp_path / "recipe.yaml", tmp_path / "ours").path
    assert not [path for path in os.listdir(tmp_path) if "cache" in path]  # noqa: PTH208
    base, ours, wanted = (load_file(place / "model.safetensors") for place in (tmp_path / "base", out, _only(tmp_path)))
    assert ours.keys() == wanted.keys()
    moved = 0
    for key, value in wanted.items():
        # TIES and SCE cut at thresholds; a delta that mergekit rounded through base + delta - base may fall on the other side.
        odd = (ours[key] - value).abs() > 2e-6
        assert odd.float().mean() <= (0.002 if name in ("ties", "sce") else 0.0), key
        moved += not torch.equal(base[key], ours[key])
    assert moved == 9


def _only(place: Path) -> Path:
    files = list((place / "theirs").glob("*.safetensors"))
    assert len(files) == 1
    files[0].rename(place / "theirs" / "model.safetensors")
    return place / "theirs"

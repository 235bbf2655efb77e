"""Folding DoRA adapters and fused experts into a base: the written weights are PEFT's own, or the float64 sum of several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_adapters import error, run, write_recipe
from test_merging import applied, best, every, expected_sum, train, write_base
from torch import Tensor, nn

pytestmark = [pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")]


def fold(place: Path, adapters: Sequence[Path], weights: Sequence[float], method: str, **keys: Any) -> dict[str, Tensor]:
    entries = [{"adapter": str(a), "parameters": {"weight": w}} for a, w in zip(adapters, weights, strict=True)]
    output = {"kind": "model", **keys.pop("output", {})}
    run(write_recipe(place, entries, method, base_model="base", output=output, **keys), place / "out")
    return load_file(place / "out" / "model.safetensors")


def changes(after: dict[str, Tensor]) -> dict[str, Tensor]:
    before = every().state_dict()
    return {name: after[name].double() - before[name].double() for name in before}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_one_adapter_is_peft_s_own_merge(method: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", 1)
    after = fold(tmp_path, [adapter], [1.0], method)
    model: Any = PeftModel.from_pretrained(every(), str(adapter)).double()
    for name, value in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(after[name].double(), value, rtol=1e-6, atol=1e-6)


def test_several_adapters_are_the_sum_of_their_deltas(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapters = [train(tmp_path / "a", 1), train(tmp_path / "b", 2, r=3), train(tmp_path / "c", 3, use_dora=False)]
    weights = [0.7, -0.4, 0.5]
    found = changes(fold(tmp_path, adapters, weights, "task_arithmetic"))
    for name, expected in expected_sum(adapters, weights).items():
        assert error(found[name], expected) < 1e-6


def test_a_rank_limit_keeps_the_best_part(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", 1)
    found = changes(fold(tmp_path, [adapter], [1.0], "linear", output={"rank": 3}))
    for name, expected in applied(adapter).items():
        assert error(found[name], best(expected, 3)) < 1e-5


def test_methods_of_factors(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapters = [train(tmp_path / "a", 1), train(tmp_path / "b", 2)]
    found = changes(fold(tmp_path, adapters, [1.0, 1.0], "robustmerge"))
    assert all(found[f"{name}.weight"].norm() > 0 for name in ("embed", "c_attn", "conv2", "q_proj"))


# --- fused experts ------------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.gate_up_proj = nn.Parameter(torch.randn((3, 8, 6) if is_transposed else (3, 6, 8)))
        self.down_proj = nn.Parameter(torch.randn((3, 3, 8) if is_transposed else (3, 8, 3)))


def mixture(is_transposed: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"mlp": nn.ModuleDict({"experts": Experts(is_transposed), "q_proj": nn.Linear(8, 4)})})


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(
    ("method", "keys"),
    [("task_arithmetic", {}), ("ties", {"parameters": {"density": 1.0}}), ("svd", {"output": {"rank": 8}})],
    ids=["factors", "dense", "cut"],
)
@pytest.mark.parametrize("base", ["fused", "apart"])
def test_experts(base: str, is_transposed: bool, method: str, keys: dict[str, Any], tmp_path: Path) -> None:
    """TIES at density 1 on one adapter is that adapter. A base may store each expert's linears apart."""
    if base == "apart" and is_transposed:
        pytest.skip("models whose parameters are [in, out] store them fused")
    state = mixture(is_transposed).state_dict()
    (tmp_path / "base").mkdir()
    stored = {name: value.contiguous() for name, value in state.items()}
    if base == "apart":
        for e in range(3):
            gate, up = stored["mlp.experts.gate_up_proj"][e].chunk(2)
            stored |= {f"mlp.experts.{e}.gate_proj.weight": gate.clone(), f"mlp.experts.{e}.up_proj.weight": up.clone()}
            stored[f"mlp.experts.{e}.down_proj.weight"] = stored["mlp.experts.down_proj"][e].clone()
        del stored["mlp.experts.gate_up_proj"], stored["mlp.experts.down_proj"]
    save_file(stored, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}")
    torch.manual_seed(1)
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    config = LoraConfig(r=2, lora_alpha=6, target_parameters=targets, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(mixture(is_transposed), config).save_pretrained(str(tmp_path / "a"))
    model: Any = PeftModel.from_pretrained(mixture(is_transposed), str(tmp_path / "a")).double()
    expected = model.merge_and_unload().state_dict()
    after = fold(tmp_path, [tmp_path / "a"], [1.0], method, **keys)
    if base == "apart":
        for name in ("gate_proj", "up_proj", "down_proj"):
            after[name] = torch.stack([after.pop(f"mlp.experts.{e}.{name}.weight") for e in range(3)])
        after["mlp.experts.gate_up_proj"] = torch.cat([after.pop("gate_proj"), after.pop("up_proj")], 1)
        after["mlp.experts.down_proj"] = after.pop("down_proj")
    assert after.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(after[name].double(), value, rtol=1e-5, atol=1e-5)
        assert ("bias" in name) == after[name].equal(state[name])

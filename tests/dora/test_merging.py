"""Merging DoRA adapters that PEFT trained, by their deltas: what is written, against PEFT's own merged weights."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_adapters import error, run, write_recipe
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from robustmerge_kit.errors import InputError, PlanError, RmkitError
from robustmerge_kit.merge import prepare

pytestmark = [pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")]


class Every(nn.Module):
    """One module of every kind that DoRA adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.q_proj = nn.Linear(6, 8)
        self.v_proj = nn.Linear(8, 7, bias=False)
        self.c_attn = Conv1D(8, 8)
        self.wide = Conv1D(9, 6)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, (3, 2))
        self.conv3 = nn.Conv3d(2, 5, (1, 2, 3))


EVERY = ["embed", "q_proj", "v_proj", "c_attn", "wide", "conv1", "conv2", "conv3"]


def every() -> nn.Module:
    torch.manual_seed(0)
    model = Every()
    with torch.no_grad():
        model.c_attn.weight.normal_()
        model.wide.weight.normal_()
    return model


def write_base(place: Path, dtype: torch.dtype = torch.float32) -> Path:
    place.mkdir(parents=True)
    save_file({name: value.to(dtype).contiguous() for name, value in every().state_dict().items()}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return place


def train(place: Path, seed: int, **settings: Any) -> Path:
    """An adapter with random factors and magnitudes a few percent away from the norms, saved by PEFT.

    Training takes PEFT longest here, so equal adapters are copied.
    """
    key = json.dumps([seed, settings], sort_keys=True)
    if key in _TRAINED:
        return shutil.copytree(_TRAINED[key], place)
    torch.manual_seed(seed)
    config = {"r": 2, "lora_alpha": 6, "target_modules": EVERY, "use_dora": True, "fan_in_fan_out": True, **settings}
    model: Any = get_peft_model(every(), LoraConfig(**config))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "magnitude" in name:
                value.mul_(1 + 0.05 * torch.randn(value.shape))
            elif "lora_" in name:
                value.copy_(0.2 * torch.randn(value.shape))
    model.save_pretrained(str(place), save_embedding_layers=False)
    _TRAINED[key] = place
    return place


_TRAINED: dict[str, Path] = {}


def applied(place: Path) -> dict[str, Tensor]:
    """What PEFT's merge changes in every weight, float64, stored as the model stores it."""
    before = {name: value.double().clone() for name, value in every().state_dict().items()}
    model: Any = PeftModel.from_pretrained(every(), str(place)).double()
    after = model.merge_and_unload().state_dict()
    return {name: after[name] - before[name] for name in before if not after[name].equal(before[name])}


def plain_deltas(place: Path) -> dict[str, Tensor]:
    """What a plain adapter of alpha = r changes in every weight."""
    tensors = load_file(place / "adapter_model.safetensors")
    like = every().state_dict()
    found: dict[str, Tensor] = {}
    for name, a in tensors.items():
        if "lora_A" not in name and "lora_embedding_A" not in name:
            continue
        site = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        b = tensors[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
        delta = b.double().flatten(1) @ a.double().flatten(1)
        turned = site in ("embed", "c_attn", "wide")
        found[f"{site}.weight"] = (delta.T if turned else delta).reshape(like[f"{site}.weight"].shape)
    return found


def best(delta: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ vh[:rank]).reshape(delta.shape)


def merge(place: Path, adapters: Sequence[Path], weights: Sequence[float], method: str, **keys: Any) -> Mapping[str, Any]:
    entries = [{"adapter": str(a), "parameters": {"weight": w}} for a, w in zip(adapters, weights, strict=True)]
    output = {"dtype": "float32", **keys.pop("output", {})}
    recipe = write_recipe(place, entries, method, base_model="base", dora="delta", output=output, **keys)
    return run(recipe, place / "out", overwrite=True).content


def expected_sum(adapters: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    each = [applied(adapter) for adapter in adapters]
    return {name: sum((w * one[name] for w, one in zip(weights, each, strict=True)), torch.zeros(())) for name in each[0]}


FORMS: dict[str, dict[str, Any]] = {
    "plain scale": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"conv2": 30}},
}


@pytest.mark.parametrize("form", FORMS)
def test_at_full_rank_the_sum_is_peft_s(form: str, tmp_path: Path) -> None:
    """One plain adapter among them: its modules meet DoRA's."""
    write_base(tmp_path / "base")
    adapters = [
        train(tmp_path / "a", 1, **FORMS[form]),
        train(tmp_path / "b", 2, r=3),
        train(tmp_path / "c", 3, use_dora=False),
    ]
    weights = [0.7, -0.4, 0.5]
    content = merge(tmp_path, adapters, weights, "task_arithmetic", output={"rank": 24})
    found, expected = plain_deltas(tmp_path / "out"), expected_sum(adapters, weights)
    assert found.keys() == expected.keys() == {f"{name}.weight" for name in EVERY}
    assert max(error(found[name], expected[name]) for name in expected) < 1e-6
    assert content["totals"]["retained_energy"] == pytest.approx(1.0)


def test_the_default_rank_keeps_the_best_part_of_the_sum(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapters = [train(tmp_path / "a", 1), train(tmp_path / "b", 2, r=3)]
    content = merge(tmp_path, adapters, [0.7, -0.4], "task_arithmetic")
    assert [file["name"] for file in content["base"]["files"]] == ["model.safetensors"]
    assert content["output"]["rank"] == 5
    found, expected = plain_deltas(tmp_path / "out"), expected_sum(adapters, [0.7, -0.4])
    assert max(error(found[name], best(delta, 5)) for name, delta in expected.items()) < 1e-5
    for site in content["sites"]:
        delta = expected[f"{site['site']}.weight"]
        kept = best(delta, 5).norm() ** 2 / delta.norm() ** 2
        assert site["retained"] == pytest.approx(float(kept), rel=1e-5)
        assert "dora_energy_kept" not in site


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_adapter_and_a_base_of_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    write_base(tmp_path / "base", dtype)
    adapter = train(tmp_path / "a", 1)
    merge(tmp_path, [adapter], [1.0], "linear", output={"rank": 24})
    found = plain_deltas(tmp_path / "out")
    expected = applied(adapter)
    assert max(error(found[name], expected[name]) for name in expected) < (1e-6 if dtype == torch.float32 else 0.2)
    if dtype == torch.bfloat16:
        assert max(error(found[name], expected[name]) for name in expected) > 1e-4


def test_element_wise_methods_see_the_deltas(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapters = [train(tmp_path / "a", 1), train(tmp_path / "b", 2)]
    merge(tmp_path, adapters, [1.0, 1.0], "ties", parameters={"density": 0.5}, output={"rank": 24})
    found = plain_deltas(tmp_path / "out")
    first, second = (applied(adapter) for adapter in adapters)
    for name, delta in found.items():
        stack = torch.stack([first[name], second[name]]).flatten(1)
        count = int(0.5 * stack.shape[1])
        kept = torch.zeros_like(stack)
        for t in range(2):
            top = stack[t].abs().topk(count).indices
            kept[t, top] = stack[t, top]
        sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
        agree = (kept.sign() == sign) & (kept != 0)
        merged = (kept * agree).sum(0) / agree.sum(0).clamp_min(1)
        assert error(delta.flatten(), merged) < 1e-5


METHODS: dict[str, dict[str, Any]] = {
    "robustmerge": {},
    "tsv_m": {},
    "iso_c": {},
    "lora_lego": {},
    "ties in the core": {"method": "ties", "space": "core", "parameters": {"density": 0.5}},
    "ties in knots": {"method": "ties", "space": "knots", "parameters": {"density": 0.5}},
    "linear in ctm": {"method": "linear", "space": "ctm"},
    "linear after a step": {"method": "linear", "pre": ["norm_balance"]},
    "linear before a step": {"method": "linear", "post": [{"rescale_output": {"to": "mean_norm"}}]},
    "ties over all sites": {"method": "ties", "parameters": {"density": 0.5, "scope": "global"}},
    "random masks": {"method": "dare_linear", "parameters": {"density": 0.5}},
    "model_stock": {},
    "karcher": {},
    "ranks by energy": {"method": "linear", "output": {"rank": {"energy": 0.95}}},
    "ranks by budget": {"method": "linear", "output": {"rank": {"budget": {"average": 6}}}},
}
EXACT = {"ties over all sites", "random masks", "model_stock", "karcher", "ranks by energy", "ranks by budget"}


@pytest.mark.parametrize("case", ["robustmerge", "random masks"])
def test_the_same_bytes_again(case: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapters = [train(tmp_path / "a", 1), train(tmp_path / "b", 2)]
    keys = dict(METHODS[case])
    method = keys.pop("method", case)
    first, second = (merge(tmp_path, adapters, [1.0, 0.5], method, **keys) for _ in range(2))
    assert first["output"]["files"] == second["output"]["files"]


@pytest.mark.parametrize("case", METHODS)
def test_every_method_runs_and_says_what_it_kept(case: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapters = [train(tmp_path / "a", 1), train(tmp_path / "b", 2), train(tmp_path / "c", 3, use_dora=False)]
    keys = dict(METHODS[case])
    content = merge(tmp_path, adapters, [1.0, 0.5, 0.8], keys.pop("method", case), **keys)
    for site in content["sites"]:
        shares = site.get("dora_energy_kept")
        assert (shares is None) == (case in EXACT)
        assert any("factors stand for DoRA deltas at 8 sites" in note for note in content["notes"]) != (case in EXACT)
        if shares:
            assert shares.keys() == {"a", "b"}
            assert all(0.3 < share <= 1 for share in shares.values())
    assert all(value.isfinite().all() for value in load_file(tmp_path / "out" / "adapter_model.safetensors").values())


def test_a_single_adapter_s_factors_merge_to_the_best_approximation(tmp_path: Path) -> None:
    """RobustMerge apart, a method that leaves one adapter alone gives back the factors that stand for it."""
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", 1)
    content = merge(tmp_path, [adapter], [1.0], "linear", pre=["norm_balance"], output={"rank": 24})
    found, expected = plain_deltas(tmp_path / "out"), applied(adapter)
    for site in content["sites"]:
        name = f"{site['site']}.weight"
        share = site["dora_energy_kept"]["a"]
        assert error(found[name], expected[name]) == pytest.approx((1 - share) ** 0.5, abs=1e-4)


def refused(place: Path, adapters: Sequence[Path], **keys: Any) -> RmkitError:
    with pytest.raises(RmkitError) as caught:
        prepare(write_recipe(place, adapters, "linear", **keys))
    return caught.value


def test_what_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", 1)
    told = "DoRA (8 modules) has no exact low-rank sum"
    for keys in ({}, {"base_model": "base"}):
        problem = refused(tmp_path, [adapter], **keys)
        assert isinstance(problem, PlanError)
        assert told in problem.what
        assert "base_model and dora: delta" in problem.hint
    assert "dora: delta needs the base" in refused(tmp_path, [adapter], dora="delta").what
    save_file({"other.weight": torch.ones(2, 2)}, base / "model.safetensors")
    assert isinstance(refused(tmp_path, [adapter], base_model="base", dora="delta"), InputError)

"""Adapters written by PEFT itself, compared in float64 with the delta PEFT computes for them."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from robustmerge_kit.adapters import Adapter, read_adapter
from robustmerge_kit.sources import resolve


class Tiny(nn.Module):
    """One module of every kind that LoRA adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.q_proj = nn.Linear(6, 5)
        self.xq_proj = nn.Linear(6, 5)
        self.c_attn = Conv1D(9, 6)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, (3, 2))
        self.point = nn.Conv2d(4, 6, 1)
        self.conv3 = nn.Conv3d(4, 6, (1, 2, 3))
        self.inner = nn.ModuleDict({"q_proj": nn.Linear(6, 5), "v_proj": nn.Linear(6, 7)})
        self.classifier = nn.Linear(5, 3)
        self.pre_classifier = nn.Linear(5, 5)


EVERY = ["embed", "q_proj", "c_attn", "conv1", "conv2", "point", "conv3", "v_proj"]


def wrapped(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": EVERY, "init_lora_weights": False, **settings})
    return get_peft_model(Tiny(), config)


def saved(model: Any, place: Path, **how: Any) -> Adapter:
    model.save_pretrained(place, save_embedding_layers=False, **how)
    return read_adapter(resolve(str(place), place), label="it")


def deltas(model: Any, name: str = "default") -> dict[str, torch.Tensor]:
    model.double()
    return {
        path.removeprefix("base_model.model."): module.get_delta_weight(name).detach()
        for path, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer) and name in {*module.lora_A, *module.lora_embedding_A}
    }


def assert_same_deltas(adapter: Adapter, expected: dict[str, torch.Tensor]) -> None:
    assert set(adapter.sites) == set(expected)
    for name, site in adapter.sites.items():
        a, b = site.read()
        assert a.shape == (site.rank, site.d_in)
        assert b.shape == (site.d_out, site.rank)
        delta = site.scale * b.double() @ a.double()
        theirs = expected[name]
        if site.kind == "embedding" or name.endswith("c_attn"):
            delta = delta.T
        torch.testing.assert_close(delta.reshape(theirs.shape), theirs, rtol=1e-12, atol=1e-12)
        assert site.kind == ("embedding" if name == "embed" else "conv" if "conv" in name or name == "point" else "linear")
        if site.kind == "conv":
            assert (site.d_out, *site.kernel) == tuple(theirs.shape)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "a rank pattern changes the scale": {"rank_pattern": {"q_proj": 2, "conv.": 3}},
    "alpha pattern": {"alpha_pattern": {"^q_proj": 24, r"inner\.(q|v)_proj": 1.5}, "rank_pattern": {"c_attn|embed": 1}},
    "first key in file order wins": {"alpha_pattern": {"inner.q_proj": 2, "q_proj": 1, "v_pro.": 3, "v_proj": 5}},
    "dots are any character": {"alpha_pattern": {"inner.q.proj": 40}},
    "regular expression of targets": {"target_modules": r".*(q_proj|v_proj)"},
    "names that end alike": {"target_modules": ["q_proj", "xq_proj"], "rank_pattern": {"q_proj": 2}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_scale_times_factors_is_peft_s_delta(tmp_path: Path, settings: dict[str, Any], safe: bool) -> None:
    model = wrapped(**settings)
    adapter = saved(model, tmp_path, safe_serialization=safe) if safe else saved_as_bin(model, tmp_path)
    # saving sorts the pattern keys, so what counts is the model that PEFT loads from the folder
    assert_same_deltas(adapter, deltas(PeftModel.from_pretrained(Tiny(), tmp_path)))
    assert not [note for note in adapter.notes if "rank" in note]
    assert adapter.extras == {}


def saved_as_bin(model: Any, place: Path) -> Adapter:
    from safetensors.torch import load_file

    model.save_pretrained(place, save_embedding_layers=False)
    torch.save(load_file(place / "adapter_model.safetensors"), place / "adapter_model.bin")
    (place / "adapter_model.safetensors").unlink()
    return read_adapter(resolve(str(place), place), label="it")


EXTRAS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "saved modules match by ending": (
        {"modules_to_save": ["classifier"]},
        {f"{m}classifier.{leaf}": "saved" for m in ("", "pre_") for leaf in ("weight", "bias")},
    ),
    "bias of adapted modules": (
        {"bias": "lora_only", "target_modules": ["q_proj", "conv1"]},
        {"q_proj.bias": "bias", "inner.q_proj.bias": "bias", "conv1.bias": "bias"},
    ),
    "all biases": (
        {"bias": "all", "target_modules": ["q_proj"], "modules_to_save": ["pre_classifier"]},
        {
            f"{m}.bias": "bias"
            for m in (
                "q_proj",
                "inner.q_proj",
                "inner.v_proj",
                "xq_proj",
                "c_attn",
                "conv1",
                "conv2",
                "conv3",
                "point",
                "classifier",
            )
        }
        | {"pre_classifier.bias": "saved", "pre_classifier.weight": "saved"},
    ),
    "bias of B": (
        {"lora_bias": True, "target_modules": ["q_proj"]},
        {"q_proj.lora_B.bias": "lora_bias", "inner.q_proj.lora_B.bias": "lora_bias"},
    ),
    "token rows": (
        {"trainable_token_indices": {"embed": [1, 3]}, "target_modules": ["q_proj"]},
        {"embed.token_adapter.trainable_tokens_delta": "tokens"},
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("settings", "expected"), EXTRAS.values(), ids=EXTRAS.keys())
def test_other_tensors_become_extras_with_their_values(
    tmp_path: Path, settings: dict[str, Any], expected: dict[str, str]
) -> None:
    model = wrapped(**settings)
    adapter = saved(model, tmp_path)
    assert {name: extra.kind for name, extra in adapter.extras.items()} == expected
    state = model.state_dict()
    for name, extra in adapter.extras.items():
        module, leaf = name.rsplit(".", 1)
        spellings = (
            f"base_model.model.{module}.modules_to_save.default.{leaf}",
            f"base_model.model.{module}.base_layer.{leaf}",
            f"base_model.model.{name.replace('lora_B.bias', 'lora_B.default.bias')}",
            f"base_model.model.{name}.default",
        )
        stored = next(state[spelling] for spelling in spellings if spelling in state)
        assert extra.ref.read().equal(stored)


@pytest.mark.filterwarnings("ignore")
def test_the_bias_of_b_carries_its_scale(tmp_path: Path) -> None:
    settings = {"use_rslora": True, "alpha_pattern": {"conv1": 10}, "rank_pattern": {"q_proj": 1}}
    model = wrapped(lora_bias=True, target_modules=["q_proj", "conv1", "c_attn"], **settings)
    adapter = saved(model, tmp_path)
    scales = {path: module.scaling["default"] for path, module in model.named_modules() if hasattr(module, "scaling")}
    found = {name.removesuffix(".lora_B.bias"): extra.scale for name, extra in adapter.extras.items()}
    assert found == {path.removeprefix("base_model.model."): scale for path, scale in scales.items()}
    assert len(set(found.values())) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tokens", [{"embed": [3, 1, 8]}, {"other": [0], "embed": [3, 1, 8]}])
def test_token_rows_know_their_tokens(tmp_path: Path, tokens: dict[str, list[int]]) -> None:
    """In the order of the configuration's list: PEFT's own model holds the same rows there."""
    model = wrapped(trainable_token_indices={"embed": [3, 1, 8]}, target_modules=["q_proj"])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "trainable_tokens_delta" in name:
                value.normal_()
    saved(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "trainable_token_indices": tokens}))
    (extra,) = read_adapter(resolve(str(tmp_path), tmp_path), label="it").extras.values()
    assert extra.indices == (3, 1, 8)
    merged = model.merge_and_unload().embed.weight
    assert merged[list(extra.indices)].equal(extra.ref.read())


@pytest.mark.filterwarnings("ignore")
def test_magnitudes(tmp_path: Path) -> None:
    model = wrapped(use_dora=True, bias="lora_only")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "magnitude" in name:
                value.mul_(torch.rand(value.shape))
    adapter = saved(model, tmp_path)
    state = model.state_dict()
    assert set(adapter.sites) == {*EVERY, "inner.q_proj", "inner.v_proj"} - {"v_proj"}
    for name, site in adapter.sites.items():
        magnitude = site.read_magnitude()
        assert magnitude is not None
        assert magnitude.shape == (site.d_out,)
        assert magnitude.equal(state[f"base_model.model.{name}.lora_magnitude_vector.default.weight"].flatten())
        assert site.refs == (site.a, site.b, site.magnitude)
    assert adapter.extras["conv1.bias"].ref.read().equal(state["base_model.model.conv1.base_layer.bias"])


@pytest.mark.filterwarnings("ignore")
def test_every_tensor_is_used_or_named(tmp_path: Path) -> None:
    """PEFT saves one bias under three spellings: the trained one is taken, the others are named in a note."""
    model = wrapped(bias="all", target_modules=["q_proj"], modules_to_save=["classifier"])
    state = {
        name: value for name, value in model.state_dict().items() if "lora_" in name or name.endswith("bias") or "save" in name
    }
    torch.save(state, tmp_path / "adapter_model.bin")
    model.peft_config["default"].save_pretrained(tmp_path)
    adapter = read_adapter(resolve(str(tmp_path), tmp_path), label="it")
    used = {ref.spec.name for site in adapter.sites.values() for ref in (site.a, site.b)}
    used |= {extra.ref.spec.name for extra in adapter.extras.values()}
    dropped = [name for name in state if "original_module" in name]
    assert dropped
    assert used == set(state) - set(dropped)
    assert any(f"{len(dropped)} tensors are untrained copies" in note for note in adapter.notes)


@pytest.mark.filterwarnings("ignore")
def test_several_adapters_in_one_run(tmp_path: Path) -> None:
    model = wrapped(target_modules=["q_proj"])
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    only = tmp_path / "second"
    assert {path.name for path in only.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    second = read_adapter(resolve(f"{tmp_path}:second", tmp_path), label="it")
    assert list(second.sites) == ["inner.v_proj"]
    state = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    raw = tmp_path / "raw"
    raw.mkdir()
    torch.save(state, raw / "adapter_model.bin")
    model.peft_config["default"].save_pretrained(raw)
    first = read_adapter(resolve(str(raw), raw), label="it", adapter_name="default")
    expected = {name: delta for name, delta in deltas(model).items() if "q_proj" in name}
    assert_same_deltas(first, expected)
    assert any("second" in note for note in first.notes)


@pytest.mark.filterwarnings("ignore")
def test_grouped_convolution_is_refused(tmp_path: Path) -> None:
    from robustmerge_kit.errors import InputError

    base = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3, groups=2)})
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["conv"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="grouped convolution"):
        read_adapter(resolve(str(tmp_path), tmp_path), label="it")

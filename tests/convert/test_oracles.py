"""What other programs make of converted files: PEFT loads them, diffusers loads them, and their outputs agree."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trips import bits, delta, read, to, write_names

peft = pytest.importorskip("peft")


# --- PEFT: everything a PEFT file may hold survives a change of the file's format ----------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.conv = nn.Conv1d(6, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.inner(self.embed(tokens))
        return self.head(self.conv(x.mT).mean(-1))


TOKENS = torch.arange(11).reshape(1, 11)

WRITTEN: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["inner"]},
    "convolution and patterns": {
        "target_modules": ["inner", "conv"],
        "rank_pattern": {"conv": 3},
        "alpha_pattern": {"inner": 5},
    },
    "embedding": {"target_modules": ["embed", "inner"]},
    "rank-stabilised": {"target_modules": ["inner", "conv"], "use_rslora": True},
    "head": {"target_modules": ["inner"], "modules_to_save": ["head"]},
    "biases": {"target_modules": ["inner"], "bias": "all"},
    "biases of adapted modules": {"target_modules": ["inner", "conv"], "bias": "lora_only"},
    "bias of B": {"target_modules": ["inner"], "lora_bias": True},
    "token rows": {"target_modules": ["inner"], "trainable_token_indices": {"embed": [2, 5]}},
}


def trained(place: Path, **config: Any) -> Tensor:
    """A PEFT adapter whose every trained number is random, and what its model says."""
    settings = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=True, **config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Net(), settings)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(place)
    return model(TOKENS).detach()


def loaded(place: Path) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(Net(), place)(TOKENS).detach()


@pytest.mark.parametrize("kind", WRITTEN, ids=str)
def test_peft_says_the_same_after_a_trip(tmp_path: Path, kind: str) -> None:
    want = trained(tmp_path / "a", **WRITTEN[kind])
    torch.testing.assert_close(loaded(tmp_path / "a"), want)
    assert not torch.allclose(want, Net()(TOKENS))
    to(tmp_path / "a", tmp_path / "bin", weights="bin")
    to(tmp_path / "bin", tmp_path / "b", "same")
    assert torch.equal(loaded(tmp_path / "b"), loaded(tmp_path / "a"))
    stored, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "b"))
    assert set(stored) == set(again)
    assert all(torch.equal(stored[name], again[name]) for name in stored)


def test_peft_says_the_same_with_one_rank_and_scale(tmp_path: Path) -> None:
    want = trained(tmp_path / "a", **WRITTEN["convolution and patterns"])
    to(tmp_path / "a", tmp_path / "b", uniform=True)
    torch.testing.assert_close(loaded(tmp_path / "b"), want)


# --- diffusers ------------------------------------------------------------------------------------------------------------


def diffusers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diffusers().UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=4,
        )


def predict(unet: Any) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    sample, text = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 5, 12, generator=draw)
    with torch.no_grad():
        return unet(sample, 3, text).sample


@pytest.fixture
def of_unet(tmp_path: Path, unet: Any) -> Path:
    """A PEFT adapter of the UNet with linear modules and convolutions of several ranks and alphas."""
    settings = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["to_q", "to_v", "to_out.0", "conv1", "proj_in"],
        rank_pattern={"conv1": 3},
        # not of attention modules: diffusers 0.42 loses such exceptions when it reads kohya files
        alpha_pattern={"proj_in": 5},
        init_lora_weights="gaussian",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet.add_adapter(settings, adapter_name="default")
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
        state = peft.get_peft_model_state_dict(unet)
    unet.unload_lora()
    place = tmp_path / "adapter"
    place.mkdir()
    tensors = {f"base_model.model.{name}": value.contiguous() for name, value in state.items()}
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    kept = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}
    (place / "adapter_config.json").write_text(json.dumps(kept))
    return place


def with_lora(unet: Any, **source: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet.load_lora_adapter(adapter_name="default", **source)
    try:
        return predict(unet)
    finally:
        unet.unload_lora()


def test_diffusers_loads_its_own_layout(tmp_path: Path, unet: Any, of_unet: Path) -> None:
    plain = predict(unet)
    to(of_unet, tmp_path / "d", "diffusers")
    loader = diffusers().loaders.StableDiffusionLoraLoaderMixin
    state, alphas, metadata = loader.lora_state_dict(
        str(tmp_path / "d"), weight_name="pytorch_lora_weights.safetensors", return_lora_metadata=True
    )
    assert not alphas
    found = with_lora(unet, pretrained_model_name_or_path_or_dict=state, metadata=metadata, prefix="unet")
    want = by_hand(unet, of_unet)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_diffusers_loads_kohyas_layout(tmp_path: Path, unet: Any, of_unet: Path) -> None:
    to(of_unet, tmp_path / "k", "kohya")
    loader = diffusers().loaders.StableDiffusionLoraLoaderMixin
    state, alphas = loader.lora_state_dict(str(tmp_path / "k"), weight_name="k.safetensors", unet_config=unet.config)
    found = with_lora(unet, pretrained_model_name_or_path_or_dict=state, network_alphas=alphas, prefix="unet")
    torch.testing.assert_close(found, by_hand(unet, of_unet), rtol=1e-4, atol=1e-5)


def by_hand(unet: Any, adapter: Path) -> Tensor:
    """The UNet's answer with every delta added to its weight."""
    found = read(adapter)
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    changed = dict(weights)
    for site in found.sites:
        weight = weights[f"{site}.weight"]
        changed[f"{site}.weight"] = weight + delta(found, site).float().reshape(weight.shape)
    unet.load_state_dict(changed)
    try:
        return predict(unet)
    finally:
        unet.load_state_dict(weights)


def test_kohya_names_are_those_diffusers_writes(tmp_path: Path, of_unet: Path) -> None:
    diffusers()
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    state = load_file(of_unet / "adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = convert_state_dict_to_kohya({name.replace("base_model.model.", "unet."): t for name, t in state.items()})
    to(of_unet, tmp_path / "k", "kohya")
    stored = load_file(tmp_path / "k" / "k.safetensors")
    assert set(stored) == set(want)
    assert all(torch.equal(stored[name], value) for name, value in want.items() if not name.endswith(".alpha"))


def test_names_come_from_a_unet_that_diffusers_saved(tmp_path: Path, unet: Any, of_unet: Path) -> None:
    unet.save_pretrained(tmp_path / "model")
    to(of_unet, tmp_path / "k", "kohya")
    to(tmp_path / "k", tmp_path / "p", base=tmp_path / "model")
    assert bits(read(tmp_path / "p")) == bits(read(of_unet))
    listed = write_names(tmp_path / "names", [name for name, _ in unet.named_modules() if name])
    to(tmp_path / "k", tmp_path / "q", names=listed)
    assert bits(read(tmp_path / "q")) == bits(read(of_unet))


def test_a_lora_that_diffusers_saved_becomes_peft_and_comes_back(tmp_path: Path, unet: Any, of_unet: Path) -> None:
    loader = diffusers().StableDiffusionPipeline
    state = {name.removeprefix("base_model.model."): t for name, t in load_file(of_unet / "adapter_model.safetensors").items()}
    metadata = json.loads((of_unet / "adapter_config.json").read_text())
    loader.save_lora_weights(tmp_path / "saved", unet_lora_layers=state, unet_lora_adapter_metadata=metadata)
    to(tmp_path / "saved", tmp_path / "p")
    assert bits(read(tmp_path / "p")) == bits(read(of_unet))
    to(tmp_path / "p", tmp_path / "d", "diffusers")
    assert bits(read(tmp_path / "d")) == bits(read(tmp_path / "saved"))

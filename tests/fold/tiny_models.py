"""Tiny random models of real architectures, built from configurations, and what they answer to a fixed input."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor

IDS = torch.tensor([[1, 5, 9, 2, 30, 7], [3, 3, 8, 40, 11, 0]])


@dataclass(frozen=True)
class Family:
    """How to build a model, load one from a folder, what to ask it, and which modules adapters of it train."""

    build: Callable[[], Any]
    load: Callable[[str], Any]
    answer: Callable[[Any], Tensor]
    targets: Any
    shard: str = "10KB"
    settings: dict[str, Any] = field(default_factory=dict)


def _text(model: Any) -> Tensor:
    return model(input_ids=IDS).logits


TOWER: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
TEXT: dict[str, Any] = dict(TOWER, vocab_size=48, intermediate_size=40)
VISION: dict[str, Any] = dict(TOWER, intermediate_size=40, image_size=16)


def llama(**settings: Any) -> Any:
    """A Llama of three layers with two heads of keys, unless the settings say otherwise."""
    sizes = dict(TEXT, intermediate_size=56, num_hidden_layers=3, num_key_value_heads=2, max_position_embeddings=64)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**(sizes | settings)))


def _gpt2() -> Any:
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def _mixtral() -> Any:
    experts = dict(intermediate_size=24, num_local_experts=3)
    return hf.MixtralForCausalLM(hf.MixtralConfig(**(TEXT | experts), num_key_value_heads=2))


def _t5() -> Any:
    config = hf.T5Config(vocab_size=48, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return hf.T5ForConditionalGeneration(config)


def _vit() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**VISION, patch_size=4, num_labels=5))


def _clip() -> Any:
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=dict(VISION, patch_size=4), projection_dim=24))


def _whisper() -> Any:
    halves = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 40))
    }
    tokens = dict(vocab_size=48, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    config = hf.WhisperConfig(**halves, **tokens, num_mel_bins=8, d_model=32, max_source_positions=16, max_target_positions=16)
    return hf.WhisperForConditionalGeneration(config)


def _llava() -> Any:
    text = hf.LlamaConfig(**TEXT, num_key_value_heads=2)
    vision = hf.CLIPVisionConfig(**(VISION | dict(hidden_size=24, patch_size=8)))
    config = hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=47, vision_feature_layer=-1)
    return hf.LlavaForConditionalGeneration(config)


def _qwen_vl() -> Any:
    rope = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}
    vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=4, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
    text = dict(TEXT, num_key_value_heads=2, rope_scaling=rope)
    return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(text_config=text, vision_config=vision))


def _qwen_moe() -> Any:
    experts = dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=24)
    return hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**TEXT, **experts, num_key_value_heads=2))


def _pixels(size: int = 16) -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size)


def _ask_llava(model: Any) -> Tensor:
    ids = IDS.clone()
    ids[:, 1:5] = 47
    return model(input_ids=ids, pixel_values=_pixels()).logits


def _ask_clip(model: Any) -> Tensor:
    ids = IDS.clone()
    ids[:, -1] = 47
    return model(input_ids=ids, pixel_values=_pixels()).logits_per_image


def _ask_whisper(model: Any) -> Tensor:
    sound = torch.linspace(-1, 1, 2 * 8 * 32).reshape(2, 8, 32)
    return model(input_features=sound, decoder_input_ids=IDS).logits


def _loader(kind: Any) -> Callable[[str], Any]:
    return lambda folder: kind.from_pretrained(folder, dtype="auto")


FAMILIES: dict[str, Family] = {
    "llama": Family(llama, _loader(hf.LlamaForCausalLM), _text, "all-linear"),
    "llama tied": Family(lambda: llama(tie_word_embeddings=True), _loader(hf.LlamaForCausalLM), _text, ["q_proj", "down_proj"]),
    "gpt2": Family(_gpt2, _loader(hf.GPT2LMHeadModel), _text, ["c_attn", "c_proj", "c_fc"]),
    "mixtral": Family(_mixtral, _loader(hf.MixtralForCausalLM), _text, ["q_proj", "o_proj"]),
    "t5": Family(
        _t5,
        _loader(hf.T5ForConditionalGeneration),
        lambda model: model(input_ids=IDS, decoder_input_ids=IDS).logits,
        ["q", "v", "wi", "wo"],
    ),
    "vit": Family(
        _vit,
        _loader(hf.ViTForImageClassification),
        lambda model: model(pixel_values=_pixels()).logits,
        ["q_proj", "v_proj", "o_proj", "fc1", "fc2", "projection"],
    ),
    "clip": Family(_clip, _loader(hf.CLIPModel), _ask_clip, ["q_proj", "fc1", "patch_embedding"]),
    "whisper": Family(_whisper, _loader(hf.WhisperForConditionalGeneration), _ask_whisper, ["q_proj", "fc2", "out_proj"]),
    "qwen2-vl": Family(_qwen_vl, _loader(hf.Qwen2VLForConditionalGeneration), _text, ["q_proj", "up_proj", "qkv", "fc1"]),
    "qwen-moe": Family(_qwen_moe, _loader(hf.Qwen2MoeForCausalLM), _text, ["k_proj", "o_proj", "down_proj"]),
    "llava": Family(_llava, _loader(hf.LlavaForConditionalGeneration), _ask_llava, ["q_proj", "up_proj", "fc1"]),
}


def base_of(name: str) -> Any:
    """The model of a family, the same at every call, in evaluation mode."""
    torch.manual_seed(11)
    model = FAMILIES[name].build().eval()
    with torch.no_grad():
        for value in model.parameters():
            # Fresh models have zero biases and constant norms, which would hide tensors that were mixed up.
            value.add_(0.02 * torch.randn(value.shape))
    return model

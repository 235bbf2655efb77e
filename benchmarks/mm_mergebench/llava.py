"""LLaVA from transformers with an adapter in its weights, answering batches of questions greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robustmerge_kit.adapters import Adapter
from robustmerge_kit.errors import InputError

from .images import Preprocessing, open_image
from .questions import IMAGE, Question
from .tasks import Preparation

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Vicuna's system prompt, which the released evaluation uses (conversation `vicuna_v1`)."""

_RENAMED = {
    "model.layers.": "model.language_model.layers.",
    "language_model.model.layers.": "model.language_model.layers.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
"""Module names of LLaVA's own code and of transformers 4, and what transformers calls them."""


@dataclass(frozen=True)
class Llava:
    """A model with what it takes to ask it."""

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    image_tokens: int

    @classmethod
    def load(cls, base: str, adapter: Adapter | None, device: str, dtype: torch.dtype) -> Llava:
        """The base in transformers' layout, a folder or a repository of the Hub, with the adapter added to its weights.

        Raises: InputError when the base is no LLaVA-1.5 of transformers' layout, or the adapter does not fit it.
        """
        from transformers import AutoTokenizer, LlavaForConditionalGeneration
        from transformers.image_processing_base import ImageProcessingMixin

        check_base(base)
        model: Any = LlavaForConditionalGeneration.from_pretrained(base, dtype=dtype).eval()
        if adapter is not None:
            add_adapter(model, adapter)
        model = model.to(device)
        tokenizer = AutoTokenizer.from_pretrained(base)
        settings, _ = ImageProcessingMixin.get_image_processor_dict(base)
        return cls(model, tokenizer, Preprocessing.of(settings), count_image_tokens(model.config))

    def answer(self, questions: Sequence[Question], preparation: Preparation, new_tokens: int) -> list[str]:
        """What the model says to each question, greedily; questions with and without an image may be mixed."""
        rows = [self.tokens(question) for question in questions]
        width = max(map(len, rows))
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        tokens = torch.tensor([[padding] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        images = [question.image for question in questions if question.image is not None]
        pixels = [self.preprocessing(open_image(path), preparation) for path in images]
        device, dtype = self.model.device, self.model.dtype
        shown = {"pixel_values": torch.stack(pixels).to(device, dtype)} if pixels else {}
        with torch.inference_mode():
            written = self.model.generate(
                input_ids=tokens.to(device),
                attention_mask=mask.to(device),
                **shown,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=new_tokens,
                pad_token_id=padding,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)]

    def tokens(self, question: Question) -> list[int]:
        """The prompt's tokens; the text before and after the image is tokenized apart, as LLaVA's own code does it."""
        place = f"{IMAGE}\n" if question.image is not None else ""
        before, image, after = f"{SYSTEM} USER: {place}{question.text} ASSISTANT:".partition(IMAGE)
        tokens = list(self.tokenizer(before).input_ids)
        if not image:
            return tokens
        rest = list(self.tokenizer(after).input_ids)
        if rest and rest[0] == self.tokenizer.bos_token_id:
            rest = rest[1:]
        return [*tokens, *[self.model.config.image_token_id] * self.image_tokens, *rest]


def check_base(base: str) -> Any:
    """The configuration of a base that `Llava.load` can load; reads no weights.

    Raises: InputError when there is none, or it is of another model or layout.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        hint = "name a folder or repository in transformers' layout, e.g. llava-hf/llava-1.5-7b-hf"
        raise InputError(f"is no model that transformers can load: {first}", where=base, hint=hint) from error
    if config.model_type != "llava" or not hasattr(config, "image_token_id"):
        raise InputError(
            f"has model_type {config.model_type}, not transformers' llava",
            where=base,
            hint="use the conversion of the same weights to transformers' layout, e.g. llava-hf/llava-1.5-7b-hf",
        )
    return config


def count_image_tokens(config: Any) -> int:
    """Tokens that stand for one image: a token per patch, and the class token where the features keep it."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return patches + (config.vision_feature_select_strategy == "full")


def add_adapter(model: Any, adapter: Adapter) -> int:
    """Add every delta to its weight, in float32 with one rounding, and put trained projector tensors in place of the base's.

    Returns the number of sites.
    Raises: InputError, before anything is changed, for what the model has no place for; nothing is left out silently.
    """
    parameters = dict(model.named_parameters())
    where = adapter.label
    sites = {name: _find(f"{name}.weight", parameters, where) for name in adapter.sites}
    extras = {name: _find(name, parameters, where) for name in adapter.extras}
    _refuse_misfits(adapter, sites, extras)
    with torch.no_grad():
        for name, site in adapter.sites.items():
            a, b = (factor.to(torch.float32) for factor in site.read())
            weight = sites[name]
            weight.copy_(weight.to(torch.float32) + site.scale * (b @ a).to(weight.device))
        for name, extra in adapter.extras.items():
            extras[name].copy_(extra.ref.read())
    return len(sites)


def _find(name: str, parameters: Mapping[str, Any], where: str) -> Any:
    renamed = next((new + name.removeprefix(old) for old, new in _RENAMED.items() if name.startswith(old)), name)
    found = parameters.get(name, parameters.get(renamed))
    if found is None:
        raise InputError(f"the base has no {name} (nor {renamed})", where=where, hint="is it an adapter of LLaVA-1.5?")
    return found


def _refuse_misfits(adapter: Adapter, sites: Mapping[str, Any], extras: Mapping[str, Any]) -> None:
    for name, site in adapter.sites.items():
        shape = tuple(sites[name].shape)
        if site.kind != "linear" or site.magnitude is not None or site.initial is not None:
            raise InputError(
                f"{name} is not a plain LoRA site",
                where=adapter.label,
                hint="fold it with `rmkit run` and give the model as --base",
            )
        if shape != (site.d_out, site.d_in):
            raise InputError(f"{name} is {site.d_out} x {site.d_in}, the base has {shape}", where=adapter.label)
    for name, extra in adapter.extras.items():
        if extra.kind != "saved" or tuple(extra.ref.spec.shape) != tuple(extras[name].shape):
            raise InputError(f"{name} does not fit the base's {tuple(extras[name].shape)}", where=adapter.label)


def choose_dtype(wanted: str, device: str) -> torch.dtype:
    """The dtype to run in: `auto` is float16 on a GPU, as released, and float32 on a CPU."""
    name = ("float16" if device.startswith("cuda") else "float32") if wanted == "auto" else wanted
    return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[name]

"""`output.for`: what a serving program accepts, checked while planning. A profile never changes numbers beyond padding."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..errors import PlanError, RmkitError, raise_all
from ..recipe import Output
from ..sources import Source
from .places import find_places
from .steps import Plan

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as `--max-lora-rank`."""

_MODULES: dict[str, tuple[tuple[str, ...], str]] = {
    "vllm": (("linear",), "vLLM loads linear modules only"),
    "sglang": (("linear", "embedding"), "SGLang loads linear modules and embeddings only"),
    "tgi": (("linear",), "TGI maps linear modules only"),
    "gguf": (("linear",), "llama.cpp's converter takes linear modules only"),
}
"""Program -> kinds of modules it loads, and the sentence that says so."""


def served_rank(output: Output, rank: int) -> int:
    """The rank an adapter is padded to for the program that the recipe's `output` names.

    Raises: PlanError when the program takes no rank that large.
    """
    if output.for_ != "vllm" or output.kind == "model":
        return rank
    for allowed in VLLM_RANKS:
        if rank <= allowed:
            return allowed
    raise PlanError(
        f"rank {rank} is more than vLLM's largest, {VLLM_RANKS[-1]}",
        where="output.for",
        hint="set output.rank to 512 or less",
    )


def check_profile(plan: Plan) -> None:
    """Refuse what the program named by `output.for` cannot load.

    Raises: PlanError, all problems at once.
    """
    program = plan.recipe.output.for_
    if program is None or program == "peft":
        return
    if plan.fold:
        return
    errors = [*_check_form(plan, program), *_check_modules(plan, program), *_check_names(plan, program)]
    for error in errors:
        error.where = error.where or "output.for"
    raise_all(errors)


def _check_form(plan: Plan, program: str) -> Iterator[RmkitError]:
    """Layout, file and dtype."""
    if plan.target.layout != "peft":
        yield PlanError(f"{program} loads PEFT folders, not {plan.target.layout}", hint="use output.format: peft")
    elif program == "tgi" and not plan.target.weights.endswith(".safetensors"):
        yield PlanError(f"TGI loads safetensors, not {plan.target.weights}", hint="leave output.weights out")
    if program == "gguf" and plan.dtype == "bfloat16":
        yield PlanError("llama.cpp's converter wants float32 or float16, not bfloat16", hint="set output.dtype: float16")
    if program == "gguf" and _base(plan) is None:
        yield PlanError("llama.cpp's converter reads the base's config", hint="set base_model")


def _check_modules(plan: Plan, program: str) -> Iterator[RmkitError]:
    """Kinds of modules, and tensors beside the factors."""
    kinds, sentence = _MODULES[program]
    odd = [
        step.site
        for step in plan.steps
        if step.model.kind not in kinds or (step.site.endswith("lm_head") and "embedding" not in kinds)
    ]
    if odd:
        yield PlanError(
            f"{sentence}; {len(odd)} sites are embeddings, convolutions, fused experts or lm_head, the first: {odd[0]}",
            hint="merge adapters without them, or drop output.for and use PEFT",
        )
    if plan.extras:
        yield PlanError(
            f"{program} takes no tensors beside the LoRA factors; there are {len(plan.extras)}, the first: "
            f"{plan.extras[0].name}",
            hint="set extras: drop",
        )


def _check_names(plan: Plan, program: str) -> Iterator[RmkitError]:
    """Every module against a base on this disk: servers take an adapter whose names fit nothing, and serve the plain base."""
    base = plan.recipe.base_model
    folder = plan.recipe.place / Path(base).expanduser() if base else None
    if folder is None or not folder.is_dir() or not any(folder.glob("*.safetensors*")):
        return
    checkpoint = open_checkpoint(Source(str(base), folder))
    absent = [step.site for step in plan.steps if not find_places(step.site, step.model, checkpoint, conv1d=True)]
    if absent:
        some = next(iter(checkpoint.tensors)).removesuffix(".weight")
        yield PlanError(
            f"{len(absent)} of {len(plan.steps)} modules are not in base_model, or have another shape there "
            f"(first {absent[0]}; names there are like {some}), and {program} would leave them out without a word",
            hint="give `rename: {from: to}` on the adapter entries, or the base these adapters were trained on",
        )


def serving(plan: Plan) -> dict[str, str | None]:
    """How to serve the result, for the receipt: program, command and a remark.

    In the command FOLDER stands for the output folder. Nothing is run to check it.
    """
    program, rank = plan.recipe.output.for_, plan.rank
    command = note = None
    if plan.fold:
        command = _MODEL_COMMANDS.get(program or "")
    elif plan.target.layout == "peft" and rank is not None:
        base, name = _base(plan), re.sub(r"[^\w.-]+", "-", plan.recipe.title).strip("-") or "merged"
        where = f" --base {shlex.quote(base)}" if base and (plan.recipe.place / base).is_dir() else ""
        lines = _ADAPTER_COMMANDS.get(program or "")
        command = lines and lines.format(base=shlex.quote(base or "BASE"), rank=rank, name=name, where=where)
        flag = next((allowed for allowed in VLLM_RANKS if rank <= allowed), None)
        if program is None and flag is not None and flag > 16:
            note = f"rank {rank}: vLLM needs --max-lora-rank {flag}, its default is 16"
    return {"for": program, "command": command, "note": note}


_ADAPTER_COMMANDS = {
    "vllm": "vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}=FOLDER",
    "sglang": "python -m sglang.launch_server --model-path {base} --enable-lora --max-lora-rank {rank} "
    "--lora-paths {name}=FOLDER",
    "tgi": "text-generation-launcher --model-id {base} --lora-adapters {name}=FOLDER",
    "gguf": "python convert_lora_to_gguf.py{where} --outtype f16 --outfile {name}.gguf FOLDER "
    "&& llama-server -m BASE.gguf --lora {name}.gguf",
}
_MODEL_COMMANDS = {
    "vllm": "vllm serve FOLDER",
    "sglang": "python -m sglang.launch_server --model-path FOLDER",
    "tgi": "text-generation-launcher --model-id FOLDER",
    "gguf": "python convert_hf_to_gguf.py FOLDER",
}


def _base(plan: Plan) -> str | None:
    return plan.recipe.base_model or next((adapter.base for adapter in plan.adapters if adapter.base), None)

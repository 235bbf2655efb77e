"""`output.for`: what a serving program accepts, checked while planning. A profile never changes numbers beyond padding."""

from __future__ import annotations

from ..errors import PlanError, RmkitError, raise_all
from .steps import Plan

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as `--max-lora-rank`."""

_PLAIN_MODULES = {
    "vllm": "vLLM loads linear modules only",
    "tgi": "TGI maps linear modules only",
    "gguf": "llama.cpp's converter takes linear modules only",
}


def served_rank(program: str | None, rank: int) -> int:
    """The rank an adapter is padded to for a program.

    Raises: PlanError when the program takes no rank that large.
    """
    if program != "vllm":
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
    errors: list[RmkitError] = []
    if plan.target.layout != "peft":
        errors.append(PlanError(f"{program} loads PEFT folders, not {plan.target.layout}", hint="use output.format: peft"))
    if program in _PLAIN_MODULES:
        odd = [step.site for step in plan.steps if step.model.kind != "linear" or step.site.endswith("lm_head")]
        if odd:
            errors.append(
                PlanError(
                    f"{_PLAIN_MODULES[program]}; {len(odd)} sites are embeddings, convolutions, fused experts or lm_head, "
                    f"the first: {odd[0]}",
                    hint="merge adapters without them, or drop output.for and use PEFT",
                )
            )
        if plan.extras:
            errors.append(
                PlanError(
                    f"{program} takes no tensors beside the LoRA factors; there are {len(plan.extras)}, the first: "
                    f"{plan.extras[0].name}",
                    hint="set extras: drop",
                )
            )
    if program == "gguf":
        if plan.dtype == "bfloat16":
            errors.append(
                PlanError("llama.cpp's converter wants float32 or float16, not bfloat16", hint="set output.dtype: float16")
            )
        if not (plan.recipe.base_model or any(adapter.base for adapter in plan.adapters)):
            errors.append(PlanError("llama.cpp's converter reads the base's config", hint="set base_model"))
    for error in errors:
        error.where = error.where or "output.for"
    raise_all(errors)


def serving_hint(plan: Plan) -> str:
    """A line that says how to serve the result; nothing was run to check it."""
    program, rank = plan.recipe.output.for_, plan.rank
    if plan.target.layout != "peft" or rank is None:
        return ""
    flag = next((allowed for allowed in VLLM_RANKS if rank <= allowed), None)
    base = plan.recipe.base_model or next((adapter.base for adapter in plan.adapters if adapter.base), None) or "BASE"
    if program == "vllm":
        return f"serve (not run): vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules merged=FOLDER"
    if program == "sglang":
        return f"serve (not run): python -m sglang.launch_server --model-path {base} --max-lora-rank {rank} --lora-paths FOLDER"
    if program == "tgi":
        return f"serve (not run): text-generation-launcher --model-id {base} --lora-adapters merged=FOLDER"
    if program == "gguf":
        return "convert (not run): python convert_lora_to_gguf.py FOLDER"
    if flag is not None and flag > 16:
        return f"rank {rank}: vLLM needs --max-lora-rank {flag}, its default is 16"
    return ""

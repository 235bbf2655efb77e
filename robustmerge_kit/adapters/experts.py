"""Fused experts: factors of one 3-D parameter [E, d1, d2] that holds the weights of E experts.

PEFT (`target_parameters`) stores A of all experts one below the other, expert after expert, [E * r, in], and the columns of B
[out, r * E] rank after rank: column = rank * E + expert. Unsloth's are expert after expert. MLX stacks both, [E, r, in] and
[E, out, r]. A file says neither the name of the parameter nor E nor which axis of the parameter is the output: these come
from the configuration, from the order in which models register their parameters, and from shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError

if TYPE_CHECKING:
    import torch

Axes = Literal["out_in", "in_out"]
"""Whether P[e] += s B_e A_e, or its transpose."""
Columns = Literal["peft", "unsloth", "stacked"]
"""How the factors of all experts lie in their tensors."""

NESTED = ".base_layer"
"""What PEFT puts between a module's name and the factors of a parameter registered before another adapted one."""

REGISTERED = (
    "gate_up_proj",
    "gate_up_proj_bias",
    "gate_proj",
    "w1",
    "v1",
    "up_proj",
    "up_proj_bias",
    "w2",
    "down_proj",
    "down_proj_bias",
)
"""Names of expert parameters in the order in which models register them."""

_IN_OUT_MODELS = re.compile(r"gpt[-_]?oss|aria|privacy[-_]?filter", re.IGNORECASE)
_OUT_IN_MODELS = re.compile(
    r"qwen|mixtral|mistral|deepseek|olmoe|granite|glm|ernie|phi|minimax|jamba|nemotron|kimi|hunyuan|lfm2|dots", re.IGNORECASE
)
_SPLIT_AXES = (0, 19)
"""PEFT's version from which on A reads the input of modules that store [out, in]; before, A always read the first axis."""
_README_BYTES = 1 << 16


def unpack(a: torch.Tensor, b: torch.Tensor, experts: int, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored factors as a batch over the experts.

    Shapes: a [E * r, d_in], b [d_out, r * E] (both [E, ...] where stacked) -> (E, r, d_in), (E, d_out, r).
    """
    if columns == "stacked":
        return a, b
    rank = a.shape[0] // experts
    a = a.reshape(experts, rank, a.shape[1])
    if columns == "unsloth":
        return a, b.reshape(b.shape[0], experts, rank).transpose(0, 1).contiguous()
    return a, b.reshape(b.shape[0], rank, experts).permute(2, 0, 1).contiguous()


def pack(a: torch.Tensor, b: torch.Tensor, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `unpack`.

    Shapes: a (E, r, d_in), b (E, d_out, r) -> [E * r, d_in], [d_out, r * E].
    """
    if columns == "stacked":
        return a, b
    experts, d_out, rank = b.shape
    b = b.transpose(0, 1) if columns == "unsloth" else b.permute(1, 2, 0)
    return a.reshape(experts * rank, a.shape[2]), b.reshape(d_out, rank * experts)


# --- which parameter ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behind:
    """The parameter behind a module of a file: its name in the model, and how deep PEFT nested its factors."""

    site: str
    nesting: int


def is_target(parameter: str, targets: Iterable[str]) -> bool:
    """Whether PEFT adapts a parameter: one of the targets is its name, or an ending of it after a dot."""
    return any(parameter == target or parameter.endswith(f".{target}") for target in targets)


def targets_of(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The entries of `target_parameters`.

    Raises: InputError when it is no list of names.
    """
    targets = config.get("target_parameters") or ()
    if not isinstance(targets, list | tuple) or not all(isinstance(t, str) and t.rpartition(".")[2] for t in targets):
        raise InputError(f"target_parameters is {str(targets)[:80]!r}, not a list of names", where=where)
    return tuple(targets)


def find_parameters(
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    config: Mapping[str, Any],
    announced: Callable[[str], int | None],
    where: str,
) -> dict[str, Behind]:
    """Modules of a file whose factors belong to a parameter that PEFT was told to adapt by its name.

    shapes: of A and B by module, as the file names it (with `.base_layer` where nested). announced: the rank the
    configuration gives a module.

    Raises: InputError when it cannot be told which parameter is meant.
    """
    targets = targets_of(config, where)
    chains: dict[str, list[str]] = {}
    for module in sorted(shapes, key=len, reverse=True):
        stem = module
        while (outer := stem.removesuffix(NESTED)) in shapes and outer != stem:
            stem = outer
        chains.setdefault(stem, []).append(module)
    found: dict[str, Behind] = {}
    for stem, chain in chains.items():
        whole = len(chain) == 1 and shapes[stem][0][:1] == (announced(stem),)
        names = _behind(stem, len(chain), whole, targets, config, where)
        if len(names) > 1:
            names = _in_order(stem, names, [shapes[module] for module in chain], where)
        for depth, (module, name) in enumerate(zip(chain, names, strict=False)):
            found[module] = Behind(f"{stem}.{name}", len(chain) - 1 - depth)
    return found


def _behind(stem: str, count: int, whole: bool, targets: Collection[str], config: Mapping[str, Any], where: str) -> list[str]:
    """Names of the parameters that the `count` factors of one module belong to; empty: they adapt the module itself.

    whole: there is one pair of factors, and not more of it than one weight needs.
    """
    if not targets:
        if count == 1 and stem.rpartition(".")[2] != "experts":
            return []
        raise InputError(
            f"{stem}: fused expert parameters, but the configuration has no target_parameters",
            where=where,
            hint="put back the adapter_config.json that PEFT wrote",
        )
    fitting = [target for target in targets if is_target(f"{stem}.{_last(target)}", [target])]
    # an entry without a dot fits every module, so it says nothing of this one
    if count == 1 and (
        _is_module(stem, config.get("target_modules")) or (whole and not any("." in target for target in fitting))
    ):
        return []
    names = sorted(map(_last, fitting))
    if len(names) == count or not names:
        if count > 1 and not names:
            raise InputError(f"{stem}: nested factors that no entry of target_parameters explains", where=where)
        return names
    raise InputError(
        f"{stem}: factors of {count} fused expert parameters, but target_parameters allows {', '.join(names)}",
        where=where,
        hint="list in target_parameters the parameters that were trained, as PEFT does when it saves",
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_module(stem: str, targets: Any) -> bool:
    """Whether a list of target modules names the module itself; a regular expression is not asked."""
    return isinstance(targets, list) and any(stem == target or stem.endswith(f".{target}") for target in targets)


def _in_order(stem: str, names: Sequence[str], shapes: Sequence[Sequence[tuple[int, ...]]], where: str) -> list[str]:
    """The parameters from the innermost out: in the order of registration, which the shapes must confirm."""
    ordered = registered_order(names)
    if ordered is None:
        raise InputError(
            f"{stem}: cannot tell which of its factors belong to which of {', '.join(names)}",
            where=where,
            hint=f"the order of registration is known for {', '.join(REGISTERED)}; merge this adapter into its base with PEFT",
        )
    if set(names) != {"gate_up_proj", "down_proj"} or any(len(shape) != 2 for pair in shapes for shape in pair):
        return ordered
    inner, outer = ((a[1], b[0]) for a, b in shapes)
    if _gate_up_and_down(inner, outer):
        return ordered
    if _gate_up_and_down(outer, inner):
        return ordered[::-1]
    raise InputError(
        f"{stem}: the shapes of its factors ([in, out] {list(inner)} inside, {list(outer)} outside) are not those of "
        "gate_up_proj and down_proj",
        where=where,
        hint="is this adapter_config.json that of the weights?",
    )


def registered_order(names: Collection[str]) -> list[str] | None:
    """Parameters of one module in the order in which models register them; None where that is not known."""
    return sorted(names, key=REGISTERED.index) if set(names) <= set(REGISTERED) else None


def _gate_up_and_down(up: tuple[int, int], down: tuple[int, int]) -> bool:
    """Whether (in, out) widths of two pairs of factors are H -> 2 I and I -> H, in either orientation of the parameters."""
    return (up[0] == down[1] and up[1] == 2 * down[0]) or (up[1] == down[0] and up[0] == 2 * down[1])


# --- how its factors lie --------------------------------------------------------------------------------------------------


def count_experts(module: str, rows: int, rank: int | None, where: str) -> int:
    """How many experts share `rows` rows of A, at the rank the configuration announces.

    Raises: InputError when the rank is not known or does not divide the rows.
    """
    if rank is None:
        raise InputError(
            f"{module}: r is missing in the configuration, so the number of experts is not known",
            where=where,
            hint="put back the adapter_config.json that PEFT wrote",
        )
    if rows % rank:
        raise InputError(
            f"{module}: {rows} rows of A are no multiple of the rank {rank} in the configuration",
            where=where,
            hint="is this adapter_config.json that of the weights?",
        )
    return rows // rank


def decide_axes(module: str, square: bool, config: Mapping[str, Any], chosen: Axes | None, where: str) -> Axes:
    """Which axis of the parameter is the output: the recipe's word, else PEFT's version and the model's family.

    Where A and B differ in width the shape of the base's parameter decides when it is at hand, so a guess does no harm.

    Raises: InputError when the widths are equal and neither version nor family tells.
    """
    if chosen is not None:
        return chosen
    version = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version") or ""))
    if version and (int(version[1]), int(version[2])) < _SPLIT_AXES:
        return "in_out"
    mapping = config.get("auto_mapping")
    family = " ".join(map(str, mapping.values())) if isinstance(mapping, dict) else ""
    family += f" {config.get('base_model_name_or_path') or ''}"
    if _IN_OUT_MODELS.search(family):
        return "in_out"
    if (version and _OUT_IN_MODELS.search(family)) or not square:
        return "out_in"
    raise InputError(
        f"{module}: input and output are equally wide, and PEFT's version and the model's name do not tell which is which",
        where=where,
        hint="give expert_axes: out_in (P[e] += B A) or in_out (its transpose) on the adapter entry",
    )


def warn_of_unsloth(folder: Path, config: Mapping[str, Any]) -> str | None:
    """A remark for adapters that Unsloth may have trained, whose order of columns the file does not tell."""
    named = [key for key in ("base_model_name_or_path", "auto_mapping") if "unsloth" in str(config.get(key)).lower()]
    origin = f"{named[0]} in the configuration" if named else "README.md" if _readme_names_unsloth(folder) else None
    if origin is None:
        return None
    return (
        f"{origin} names Unsloth: if it trained the experts, their B has its columns expert after expert, which the file does "
        "not tell; give expert_layout: unsloth (or peft, to confirm) on the adapter entry"
    )


def _readme_names_unsloth(folder: Path) -> bool:
    try:
        with (folder / "README.md").open("rb") as file:
            return b"unsloth" in file.read(_README_BYTES).lower()
    except OSError:
        return False

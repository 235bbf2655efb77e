"""Which files of a folder make up one adapter, decided from names alone: the same for a local folder and a Hub listing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from .errors import InputError

CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
MLX_WEIGHTS = "adapters.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
NON_LORA = "non_lora_trainables.bin"
MODEL_CONFIG = "config.json"

DRIVE = re.compile(r"[A-Za-z]:([\\/]|$)")
"""Beginning of a path with a drive letter."""

_TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_BESIDE = re.compile(r"(optimizer|scheduler|scaler|training_args|trainer_state|rng_state|random_states|non_lora_trainables)")
_TENSOR_PARALLEL = re.compile(r"adapter_model_\d+\.|mp_rank_\d+|tp_rank_\d+")
_MODEL_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


@dataclass(frozen=True)
class Contents:
    """The files of one adapter. `child` is the sub-folder they lie in ("" for the folder asked for); names are file names."""

    child: str
    config: str | None
    weights: str
    beside: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """What must be at hand, the weights last, as paths from the folder asked for."""
        names = (*([self.config] if self.config else []), *self.beside, self.weights)
        return tuple(f"{self.child}/{name}" if self.child else name for name in names)


def find_adapter(names: Collection[str], where: str, adapter_name: str | None = None) -> Contents:
    """Choose the files of the one adapter among `names`, paths from the folder with `/`.

    Raises: InputError when there is none, more than one, or something that is no adapter, by name.
    """
    top = {name for name in names if "/" not in name}
    if CONFIG in top or top & set(PEFT_WEIGHTS):
        return _in_folder(top, where, "")
    children = sorted({name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith(f"/{CONFIG}")})
    if children:
        child = _choose(children, where, adapter_name)
        inside = {name.split("/")[1] for name in names if name.count("/") == 1 and name.startswith(f"{child}/")}
        found = _in_folder(inside, f"{where}/{child}", child)
        note = f"the adapter lies in the sub-folder {child!r}"
        return Contents(child, found.config, found.weights, found.beside, found.alternatives, (note, *found.notes))
    _refuse_foreign(names, where)
    return Contents("", None, _loose_weights(top, where), _beside(top))


def choose_files(names: list[str], subfolder: str, repository: str, where: str) -> tuple[list[str], str, str | None]:
    """Of a repository's files those to fetch (weights last), the sub-folder found below the one asked for, the file asked for.

    Raises: InputError when there is no such sub-folder, or what it holds is not one adapter.
    """
    if subfolder in names:
        parent = subfolder.rpartition("/")[0]
        config = f"{parent}/{CONFIG}" if parent else CONFIG
        return [*([config] if config in names else []), subfolder], "", subfolder
    prefix = f"{subfolder}/" if subfolder else ""
    within = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not within:
        there = sorted({name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG}")})
        listed = f"; adapters there: {', '.join(there[:12])}" if there else ""
        raise InputError(f"404: the repository has no subfolder {subfolder!r}{listed}", where=where)
    homes = sorted({name.rpartition("/")[0] for name in within if name.rpartition("/")[2] == CONFIG})
    if homes and all("/" in home for home in homes):
        what = f"no adapter at the top, but in {', '.join(homes[:12])}"
        raise InputError(what, where=where, hint=f"name one, e.g. {repository}:{prefix}{homes[0]}")
    found = find_adapter(within, where)
    return [prefix + name for name in found.files], found.child, None


def inside(path: str, where: str) -> str:
    """A path inside a folder or repository, cleaned and with `/`.

    Raises: InputError when it leads outside.
    """
    pure = PurePosixPath(path.replace("\\", "/"))
    if pure.is_absolute() or DRIVE.match(path) or ".." in pure.parts:
        raise InputError(f"the subfolder {path!r} leads outside of its folder", where=where)
    return "" if str(pure) == "." else str(pure)


def refuse_by_name(name: str, where: str) -> None:
    """Refuse a weights file whose name says that it is no LoRA this program reads.

    Raises: InputError naming what it is.
    """
    if name.endswith(".gguf"):
        raise InputError(
            "is a GGUF file", where=where, hint="convert the original PEFT adapter instead; GGUF is for llama.cpp's own use"
        )
    if name.endswith(".nemo") or name == "model_weights":
        raise InputError("is a NeMo checkpoint", where=where, hint="consolidate it to PEFT with NeMo's own export first")
    if name == "mm_projector.bin":
        raise InputError(
            "is mm_projector.bin, a projector of LLaVA's pretraining stage, not a LoRA",
            where=where,
            hint="give the folder of the finetuned LoRA (adapter_config.json and adapter_model.*)",
        )
    if _TENSOR_PARALLEL.match(name):
        raise InputError(
            f"{name} is sharded by tensor-parallel rank", where=where, hint="consolidate the shards into PEFT first"
        )
    if name.startswith("global_step"):
        raise InputError("is a raw DeepSpeed checkpoint", where=where, hint="consolidate it to PEFT first")
    if name.endswith(".npz"):
        raise InputError("holds numpy arrays (an old MLX adapter)", where=where, hint="save it again with a current mlx-lm")


def _in_folder(top: set[str], where: str, child: str) -> Contents:
    config = CONFIG if CONFIG in top else None
    present = [name for name in (*PEFT_WEIGHTS, MLX_WEIGHTS) if name in top]
    if present:
        return Contents(child, config, present[0], _beside(top), tuple(present[1:]))
    for name in sorted(top):
        refuse_by_name(name, where)
    if split := sorted(name for name in top if re.match(r"adapter_model-\d+-of-\d+\.|adapter_model.*\.index\.json", name)):
        raise InputError(
            f"the adapter is split over several files ({split[0]}, ...)",
            where=where,
            hint="load and save it again with PEFT, which writes one file",
        )
    loose = _loose(top)
    if len(loose) == 1:
        note = f"no adapter_model.* in the folder; its only weights file {loose[0]} was taken"
        return Contents(child, config, loose[0], _beside(top), (), (note,))
    raise InputError(
        f"{CONFIG} is there, but no {PEFT_WEIGHTS[0]}, .bin or .pt{_listing(loose)}",
        where=where,
        hint="copy the weights beside it, or download the adapter again",
    )


def _beside(top: set[str]) -> tuple[str, ...]:
    return (MODEL_CONFIG, NON_LORA) if {MODEL_CONFIG, NON_LORA} <= top else (NON_LORA,) if NON_LORA in top else ()


def _choose(children: list[str], where: str, adapter_name: str | None) -> str:
    if adapter_name in children:
        return adapter_name
    listed = ", ".join(children[:12]) + (", ..." if len(children) > 12 else "")
    if all(re.fullmatch(r"checkpoint-\d+", child) for child in children):
        raise InputError(
            f"is the folder of a training run with {len(children)} checkpoints ({listed})",
            where=where,
            hint=f"name one, e.g. {where}:{children[-1]}",
        )
    if len(children) > 1:
        raise InputError(
            f"this folder holds {len(children)} adapters ({listed})", where=where, hint=f"name one, e.g. {where}:{children[0]}"
        )
    return children[0]


def _refuse_foreign(names: Collection[str], where: str) -> None:
    top = sorted({name.split("/")[0] for name in names})
    loose = _loose(name for name in names if "/" not in name)
    for name in top:
        if name != "mm_projector.bin" or loose == [name]:
            refuse_by_name(name, where)
    if MODEL_CONFIG in top and any(_MODEL_WEIGHTS.fullmatch(name) for name in top):
        raise InputError(
            "is a full model, not an adapter (config.json and model weights, no adapter_config.json)",
            where=where,
            hint="a model belongs in base_model; give the adapter's folder here",
        )


def _loose_weights(top: set[str], where: str) -> str:
    loose = _loose(top)
    if DIFFUSERS_WEIGHTS in loose:
        return DIFFUSERS_WEIGHTS
    if MLX_WEIGHTS in loose:
        return MLX_WEIGHTS
    if len(loose) > 1:
        raise InputError(
            f"{CONFIG} is missing and there are {len(loose)} weights files ({', '.join(loose[:6])})",
            where=where,
            hint=f"name one, e.g. {where}:{loose[0]}",
        )
    if not loose:
        raise InputError(
            f"{CONFIG} is missing: no adapter here{_listing(sorted(top))}",
            where=where,
            hint="give the folder that holds adapter_config.json and adapter_model.*",
        )
    return loose[0]


def _loose(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if PurePosixPath(name).suffix in _TENSOR_SUFFIXES and not _BESIDE.match(name))


def _listing(names: Collection[str]) -> str:
    shown = sorted(names)[:6]
    return f" (found {', '.join(shown)}{', ...' if len(names) > len(shown) else ''})" if shown else ""

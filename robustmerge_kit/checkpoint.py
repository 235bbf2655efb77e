"""A base checkpoint, headers only: which files hold its tensors, and what lies beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .adapters import read_json
from .base_folders import PIPELINE, any_weights, weight_names
from .digests import settled_state
from .errors import InputError, RmkitError, raise_all
from .folders import CONFIG, MODEL_CONFIG
from .links import fence, leads_out
from .shards import Shard, TensorRef, open_tensors
from .sources import Source

_SKIPPED_FOLDERS = re.compile(r"original|onnx|openvino|coreml|gguf|runs|logs|checkpoint-\d+|global_step.*|__pycache__")
_INDEX_LIMIT = 256 << 20


@dataclass(frozen=True)
class WeightFile:
    """One file of weights. `name` is its path from the checkpoint's folder; `prefix` stands before its tensors' names."""

    name: str
    prefix: str
    shard: Shard

    @property
    def path(self) -> Path:
        return self.shard.path


@dataclass(frozen=True)
class Checkpoint:
    """A base model. Tensors of a pipeline's component carry the component's name as a prefix.

    home: tensor -> its file. configs: prefix -> the configuration of that component ("" for a plain model).
    indexes: path of every index file from the folder. beside: everything else that belongs to the model, as such paths.
    """

    source: Source
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, TensorRef]
    home: Mapping[str, WeightFile]
    configs: Mapping[str, Mapping[str, Any]]
    indexes: tuple[str, ...]
    beside: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of a plain model; empty for a pipeline."""
        return self.configs.get("", {})

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.path.stat().st_size for file in self.files)


def open_checkpoint(source: Source) -> Checkpoint:
    """Read the headers of a base model: single or sharded safetensors or `.bin` files, or a diffusers pipeline of such.

    Raises: InputError when there are no weights, an index does not fit its shards, or a file is broken.
    """
    folder = source.folder
    where = source.reference
    if source.file is not None and not source.file.name.endswith(".index.json"):
        return _gather(source, [_Component("", [_WeightName(source.file.name)], None)], [])
    if (folder / CONFIG).is_file() and not _has_weights(folder):
        raise InputError("is an adapter, not a base model", where=where, hint="adapters belong in `adapters`")
    if (folder / PIPELINE).is_file():
        parts = sorted(child for child in folder.iterdir() if child.is_dir() and _has_weights(child))
        components = [_component(child, f"{child.name}/", f"{child.name}.") for child in parts]
    else:
        components = [_component(folder, "", "")] if _has_weights(folder) else []
    if not components:
        raise InputError(
            "holds no model weights (model.safetensors, pytorch_model.bin or their index)",
            where=where,
            hint="base_model is the folder of the base model, as save_pretrained writes it",
        )
    notes = [note for component in components for note in component.notes]
    return _gather(source, components, notes)


# --- which files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WeightName:
    name: str
    wanted: frozenset[str] | None = None
    """Stored names the index expects in this file, None without an index."""


@dataclass(frozen=True)
class _Component:
    prefix: str
    weights: Sequence[_WeightName]
    index: str | None
    notes: Sequence[str] = ()


def _has_weights(folder: Path) -> bool:
    return weight_names(_files(folder)) is not None


def _files(folder: Path) -> list[str]:
    try:
        return sorted(child.name for child in folder.iterdir() if child.is_file())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(folder)) from error


def _component(folder: Path, path: str, prefix: str) -> _Component:
    chosen = weight_names(_files(folder))
    assert chosen is not None
    name, indexed = chosen
    others = [
        other
        for other in _files(folder)
        if other.endswith((".safetensors", ".bin")) and not other.startswith(name.partition(".")[0]) and "_args" not in other
    ]
    notes = [f"base: {path}{others[0]}{' and others' * (len(others) > 1)} beside {name} ignored"] if others else []
    if not indexed:
        return _Component(prefix, [_WeightName(path + name)], None, notes)
    return _Component(prefix, *_read_index(folder / name, path), [*notes])


def _read_index(index: Path, path: str) -> tuple[Sequence[_WeightName], str]:
    state = settled_state(index)
    shards = _parse_index(index) if state is None else _remembered_index(index, *state)
    for shard, _ in shards:
        if not (index.parent / shard).is_file():
            what = f"names the shard {shard}, which is missing"
            raise InputError(what, where=str(index), hint="download the base model again")
    return [_WeightName(path + shard, names) for shard, names in shards], path + index.name


@lru_cache(maxsize=16)
def _remembered_index(index: Path, *state: int) -> Sequence[tuple[str, frozenset[str]]]:
    return _parse_index(index)


def _parse_index(index: Path) -> Sequence[tuple[str, frozenset[str]]]:
    """The shards that an index names, and the tensors of each."""
    where = str(index)
    try:
        if index.stat().st_size > _INDEX_LIMIT:
            raise InputError(f"is larger than {_INDEX_LIMIT >> 20} MiB, which no index is", where=where)
        parsed: Any = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", where=where, hint="download the base model again") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=where) from error
    mapping: Any = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(shard, str) for shard in mapping.values()):
        raise InputError("has no weight_map of tensor names to file names", where=where, hint="download the base model again")
    by_shard: dict[str, set[str]] = {}
    for tensor, shard in mapping.items():
        by_shard.setdefault(shard, set()).add(tensor)
    for shard in by_shard:
        if "/" in shard or "\\" in shard or shard in ("", ".", "..") or "\0" in shard:
            raise InputError(f"names a shard outside of its folder: {shard!r}", where=where)
    return [(shard, frozenset(names)) for shard, names in sorted(by_shard.items())]


def _gather(source: Source, components: Sequence[_Component], notes: list[str]) -> Checkpoint:
    folder = source.folder
    files: list[WeightFile] = []
    tensors: dict[str, TensorRef] = {}
    home: dict[str, WeightFile] = {}
    errors: list[RmkitError] = []
    for component in components:
        for weights in component.weights:
            try:
                file = WeightFile(weights.name, component.prefix, open_tensors(folder / weights.name))
                notes.extend(file.shard.notes)
                _check_against_index(file, weights, notes)
                for name, ref in file.shard.tensors.items():
                    full = component.prefix + name
                    if full in home:
                        raise InputError(
                            f"tensor {name} is in {home[full].name} and in {file.name}",
                            where=str(folder),
                            hint="download the base model again",
                        )
                    tensors[full], home[full] = ref, file
                files.append(file)
            except RmkitError as error:
                errors.append(error)
    raise_all(errors)
    configs = {component.prefix: _config(folder / component.prefix.removesuffix(".")) for component in components}
    indexes = tuple(component.index for component in components if component.index)
    taken = {file.name for file in files} | set(indexes)
    beside = tuple(_beside(folder, taken, notes))
    return Checkpoint(source, tuple(files), tensors, home, configs, indexes, beside, tuple(notes))


def _check_against_index(file: WeightFile, weights: _WeightName, notes: list[str]) -> None:
    if weights.wanted is None:
        return
    absent = sorted(weights.wanted - file.shard.tensors.keys())
    if absent:
        raise InputError(
            f"lacks {len(absent)} tensors that the index places there, the first: {absent[0]}",
            where=str(file.path),
            hint="index and shards belong to different versions; download the base model again",
        )
    extra = len(file.shard.tensors.keys() - weights.wanted)
    if extra:
        notes.append(f"base: {file.name} holds {extra} tensors that the index does not name")


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / MODEL_CONFIG
    return read_json(path) if path.is_file() else {}


# --- what lies beside the weights ---------------------------------------------------------------------------------------


def _beside(folder: Path, taken: set[str], notes: list[str]) -> Iterator[str]:
    """Configuration, tokenizer, processors, custom code: all files but other weights, cards, hidden ones and exports."""
    limits = fence(folder)
    for path in sorted(_walk(folder)):
        name = path.relative_to(folder).as_posix()
        if name in taken or path.name == "README.md":
            continue
        nested = "/" in name
        if any_weights(path.name) and not (nested and path.suffix == ".safetensors" and not _is_component(path)):
            continue
        if path.is_symlink() and leads_out(path, limits):
            notes.append(f"base: {name} leads outside of the base's folder and is not copied")
            continue
        yield name


def _walk(folder: Path) -> Iterator[Path]:
    for child in folder.iterdir():
        if child.name.startswith("."):
            continue
        if child.is_dir():
            if not (child.is_symlink() or _SKIPPED_FOLDERS.fullmatch(child.name) or (child / CONFIG).exists()):
                yield from _walk(child)
        elif child.is_file():
            yield child


def _is_component(path: Path) -> bool:
    """Whether weights in a sub-folder are another form of weights that are written anyway."""
    return (path.parent.parent / PIPELINE).is_file()

"""Folding: which base tensors a merge changes, what the written model consists of, and how each of its files is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ..adapters import Adapter
from ..checkpoint import Checkpoint, WeightFile
from ..errors import InputError, PlanError
from ..recipe import Recipe
from ..shards import ITEMSIZE, TensorSpec
from .changes import Change, plan_changes
from .places import Place, find_places, input_embedding, is_embedding, is_head, stored_flipped, tied_heads
from .quantised import refuse_quantised
from .steps import SiteStep

TILE = 1 << 20
"""Elements of a base tensor that are in memory as numbers at a time, for each worker."""

FLOATING = ("float64", "float32", "float16", "bfloat16")
TOKENIZER_FILES = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens_map",
    "added_tokens",
    "spiece",
    "sentencepiece",
    "chat_template",
    "additional_chat_templates",
)
"""Beginnings of the names of files that make up a tokenizer."""


@dataclass(frozen=True)
class Layout:
    """How a model is written, which changes no number. shard_size: bytes of one weights file, None: the base's own files.

    tokenizer: whether the base's tokenizer is copied.
    """

    shard_size: int | None = None
    tokenizer: bool = True


DEFAULT_LAYOUT = Layout()


@dataclass(frozen=True)
class OutputFile:
    """One weights file of the model. `clone`: a file of the base that is copied whole and patched; None: written afresh.

    specs: its tensors by stored name, without `prefix`, in the order they lie there; of a clone those that change.
    rewritten: of a clone, the elements of these that change, by stored name, ascending (start, end).
    """

    name: str
    prefix: str
    specs: tuple[TensorSpec, ...]
    clone: WeightFile | None
    rewritten: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict[str, Sequence[tuple[int, int]]])

    @property
    def nbytes(self) -> int:
        return self.clone.path.stat().st_size if self.clone else sum(spec.nbytes for spec in self.specs)


@dataclass(frozen=True)
class Copy:
    """Elements of a base tensor that are written as they are, cast where the dtype changes."""

    tensor: str
    origin: str
    ranges: tuple[tuple[int, int], ...]
    numel: int


@dataclass(frozen=True)
class Fold:
    """Where a merge goes in its base.

    places: site -> regions it is added to. changes: tensors made of whole tensors of the inputs. copies: what a file that is
    written afresh takes over from the base. origins: tensors that start from another base tensor than their namesake.
    configs: component prefix -> keys of its configuration that change. beside: files to copy, as paths from the base's folder;
    tokenizer: files of an adapter that replace the base's.
    """

    base: Checkpoint
    places: Mapping[str, tuple[Place, ...]]
    changes: tuple[Change, ...]
    copies: tuple[Copy, ...]
    origins: Mapping[str, str]
    files: tuple[OutputFile, ...]
    configs: Mapping[str, Mapping[str, Any]]
    beside: tuple[str, ...]
    notes: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every written tensor by its full name."""
        return {file.prefix + spec.name: spec for file in self.files for spec in file.specs}

    @property
    def dtype(self) -> str:
        """The dtype most of what is written has."""
        sizes: dict[str, int] = defaultdict(int)
        for spec in self.specs.values():
            sizes[spec.dtype] += spec.numel
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def write_bytes(self) -> int:
        beside = sum((self.base.folder / name).stat().st_size for name in self.beside)
        return beside + sum(file.nbytes for file in self.files)

    @property
    def read_bytes(self) -> int:
        """Bytes of the base that are read; what the kernel copies by itself is not counted."""
        size = {name: ITEMSIZE[ref.spec.dtype] for name, ref in self.base.tensors.items()}
        merged = sum(
            place.rows * place.cols * size[self.origins.get(place.tensor, place.tensor)]
            for places in self.places.values()
            for place in places
        )
        return merged + sum(copy.numel * size[copy.origin] for copy in self.copies)


def plan_fold(
    recipe: Recipe,
    adapters: Sequence[Adapter],
    steps: Sequence[SiteStep],
    base: Checkpoint,
    layout: Layout,
) -> Fold:
    """Plan where every site and every whole tensor of the inputs goes; headers only.

    Raises: PlanError, InputError for tensors that do not fit the base.
    """
    flipped = any(stored_flipped(adapter, base) for adapter in adapters)
    origins = tied_heads({step.site: step.model for step in steps}, base)
    origins = {f"{site}.weight": embedding for site, embedding in origins.items()}
    places = {step.site: _places(step, base, flipped, origins) for step in steps}
    changes, dropped = plan_changes(recipe, adapters, base)
    touched = _touched(places, changes)
    notes, configs = list(base.notes), defaultdict[str, dict[str, Any]](dict)
    origins = _untie(touched, changes, origins, base, configs, notes)
    _grow(changes, base, configs, notes)
    added = [change.spec for change in changes if change.tensor not in base.tensors]
    added += [replace(base.tensors[origin].spec, name=name) for name, origin in origins.items()]
    _label_heads(changes, adapters, base, configs, notes)
    refuse_quantised(base, touched, recipe.output.dtype)
    dtype = recipe.output.dtype
    if dtype:
        _set_dtype(dtype, base, configs)
    files = _lay_out(base, touched, changes, added, dtype, layout.shard_size)
    copies = _copies(files, touched, origins)
    beside = tuple(name for name in base.beside if layout.tokenizer or not _is_tokenizer(name))
    return Fold(base, places, changes, copies, origins, files, dict(configs), beside, tuple(notes), dropped)


def _places(step: SiteStep, base: Checkpoint, flipped: bool, origins: Mapping[str, str]) -> tuple[Place, ...]:
    name = f"{step.site}.weight"
    if name in origins:
        return (Place(name, step.model.d_out, step.model.d_in),)
    found = find_places(step.site, step.model, base, flipped)
    if not found:
        raise InputError(f"{step.site} is not in the base", where=str(base.folder), hint="is this the adapters' base?")
    return found


def _touched(places: Mapping[str, tuple[Place, ...]], changes: Sequence[Change]) -> dict[str, list[tuple[int, int]]]:
    """Element ranges of every tensor that changes.

    Raises: PlanError when two inputs claim one region.
    """
    ranges: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for site, regions in places.items():
        for place in regions:
            ranges[place.tensor].append((place.first, place.end, site))
    for tensor, spans in ranges.items():
        spans.sort()
        for (_, end, first), (start, _, second) in pairwise(spans):
            if start < end:
                raise PlanError(f"{first} and {second} are both folded into {tensor}", hint="rename or drop one of them")
    whole: dict[str, list[tuple[int, int]]] = {}
    for change in changes:
        if change.tensor in ranges:
            raise PlanError(
                f"{change.tensor} is changed by LoRA factors and given as a whole by the inputs",
                where="extras",
                hint="choose extras: drop to keep the factors' part",
            )
        whole[change.tensor] = [(0, change.spec.numel)]
    return whole | {tensor: [(start, end) for start, end, _ in spans] for tensor, spans in ranges.items()}


# --- tied weights, vocabularies, heads ----------------------------------------------------------------------------------


def _untie(
    touched: Mapping[str, object],
    changes: Sequence[Change],
    origins: dict[str, str],
    base: Checkpoint,
    configs: dict[str, dict[str, Any]],
    notes: list[str],
) -> dict[str, str]:
    """Separate a tied head and its embedding when only one of them changes, so that the change neither leaks nor is lost."""
    config = base.config
    if config.get("model_type") in ("t5", "mt5", "umt5", "longt5", "switch_transformers") and origins:
        raise PlanError(
            f"{next(iter(origins))} is tied to the embedding, and {config['model_type']} scales a tied head",
            hint="merge into an adapter instead, or untie the base first",
        )
    whole = {change.tensor for change in changes if change.spec.shape[0] != _rows(base, change.tensor)}
    found = dict(origins)
    for name in touched:
        if is_embedding(name) and name not in whole and not any(is_head(other.removesuffix(".weight")) for other in touched):
            head = _head_of(name, base)
            if head is not None and head not in base.tensors and _ties(config):
                found[head] = name
    heads = [name for name in base.tensors if is_head(name.removesuffix(".weight"))]
    stored = [h for h in heads if (h in touched) != any(is_embedding(n) for n in touched) and config_ties(config)]
    if found or stored:
        for section in _sections(config):
            configs[""] |= _set_in(config, configs[""], section, {"tie_word_embeddings": False})
        for head, embedding in found.items():
            notes.append(f"{head} was tied to {embedding}; the model is written with both (tie_word_embeddings: false)")
        notes.extend(f"{head} and its embedding are no longer tied (tie_word_embeddings: false)" for head in stored)
    return found


def _rows(base: Checkpoint, tensor: str) -> int | None:
    return base.tensors[tensor].spec.shape[0] if tensor in base.tensors and base.tensors[tensor].spec.shape else None


def config_ties(config: Mapping[str, Any]) -> bool:
    """Whether the configuration says in so many words that head and embedding are one tensor."""
    return any(section.get("tie_word_embeddings") is True for section in _sections(config).values())


def _ties(config: Mapping[str, Any]) -> bool:
    """Whether a model without a stored head takes the embedding for it: a model that generates text does."""
    names = " ".join(map(str, config.get("architectures") or ()))
    return config_ties(config) or "LMHead" in names or "CausalLM" in names or "ConditionalGeneration" in names


def _sections(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The configuration itself and its part for text, where that stands apart."""
    text = config.get("text_config")
    return {"": config, **({"text_config": text} if isinstance(text, dict) else {})}


def _set_in(config: Mapping[str, Any], changed: Mapping[str, Any], section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if not section:
        return dict(values)
    return {section: {**config[section], **changed.get(section, {}), **values}}


def _head_of(embedding: str, base: Checkpoint) -> str | None:
    """What the head that shares an embedding is called: by the architecture, else lm_head."""
    if input_embedding(base, "lm_head.weight") != embedding:
        return None
    kind = base.config.get("model_type")
    return {"whisper": "proj_out.weight", "gpt_neox": "embed_out.weight"}.get(str(kind), "lm_head.weight")


def _grow(changes: Sequence[Change], base: Checkpoint, configs: dict[str, dict[str, Any]], notes: list[str]) -> None:
    """Vocabularies that grew: embedding and head must have the same rows, and the configuration says how many."""
    grown = {
        change.tensor: change.spec.shape[0]
        for change in changes
        if change.tensor in base.tensors
        and change.spec.shape != base.tensors[change.tensor].spec.shape
        and (is_embedding(change.tensor) or is_head(change.tensor.removesuffix(".weight")))
    }
    if not grown:
        return
    rows = set(grown.values())
    pair = [name for name in base.tensors if is_embedding(name) or is_head(name.removesuffix(".weight"))]
    short = [name for name in pair if name not in grown]
    if len(rows) > 1 or short:
        listing = ", ".join(f"{name} has {n} rows" for name, n in grown.items())
        raise PlanError(
            f"the vocabulary grew in a part only: {listing}" + (f", {short[0]} keeps {_rows(base, short[0])}" if short else ""),
            where="extras",
            hint="save embedding and head together (modules_to_save), or resize the base first",
        )
    (size,) = rows
    for section, values in _sections(base.config).items():
        if "vocab_size" in values:
            configs[""] |= _set_in(base.config, configs[""], section, {"vocab_size": size})
    notes.append(f"the vocabulary grows to {size} rows; the tokenizer that knows the added tokens must come with the model")


def _label_heads(
    changes: Sequence[Change],
    adapters: Sequence[Adapter],
    base: Checkpoint,
    configs: dict[str, dict[str, Any]],
    notes: list[str],
) -> None:
    """A classification head that the base lacks: its labels are counted in the configuration, or it would not load."""
    heads = [change for change in changes if change.tensor not in base.tensors and change.tensor.endswith(".weight")]
    kinds = {adapter.config.get("task_type") for adapter in adapters}
    notes.extend(f"{change.tensor} is not in the base and is added" for change in heads)
    last = max(heads, key=lambda change: change.tensor, default=None)
    if last is None or not kinds & {"SEQ_CLS", "TOKEN_CLS"}:
        return
    labels = base.config.get("id2label") or {}
    count = last.spec.shape[0]
    if len(labels) != count:
        configs[""] |= {
            "id2label": {str(i): f"LABEL_{i}" for i in range(count)},
            "label2id": {f"LABEL_{i}": i for i in range(count)},
        }


def _set_dtype(dtype: str, base: Checkpoint, configs: dict[str, dict[str, Any]]) -> None:
    for prefix, config in base.configs.items():
        sections = [key for key, value in config.items() if isinstance(value, dict)]
        for key in ("torch_dtype", "dtype"):
            if isinstance(config.get(key), str):
                configs[prefix][key] = dtype
            for section in sections:
                if isinstance(config[section].get(key), str):
                    configs[prefix] |= _set_in(config, configs[prefix], section, {key: dtype})


def _is_tokenizer(name: str) -> bool:
    return name.startswith(TOKENIZER_FILES) or name.endswith((".tiktoken", "tokenizer.model"))


# --- files --------------------------------------------------------------------------------------------------------------


def _lay_out(
    base: Checkpoint,
    touched: Mapping[str, Sequence[tuple[int, int]]],
    changes: Sequence[Change],
    added: Sequence[TensorSpec],
    dtype: str | None,
    shard_size: int | None,
) -> tuple[OutputFile, ...]:
    """The weights files: the base's own, or files of at most `shard_size` bytes; tensors in the order of the base."""
    reshaped = {change.tensor: change.spec.shape for change in changes}
    tail = {base.files[-1].name: tuple(added)}
    files: list[OutputFile] = []
    for file in base.files:
        specs = [_written(ref.spec, dtype, reshaped.get(file.prefix + name)) for name, ref in file.shard.tensors.items()]
        specs += [_written(spec, dtype, None) for spec in tail.get(file.name, ())]
        same = all(
            name in file.shard.tensors and file.shard.tensors[name].spec == spec
            for name, spec in ((spec.name, spec) for spec in specs)
        )
        if same and shard_size is None and file.path.suffix == ".safetensors":
            changed = tuple(spec for spec in specs if file.prefix + spec.name in touched)
            rewritten = {spec.name: touched[file.prefix + spec.name] for spec in changed}
            files.append(OutputFile(file.name, file.prefix, changed, file, rewritten))
        else:
            files.append(OutputFile(_safetensors_name(file.name), file.prefix, tuple(specs), None))
    return tuple(files) if shard_size is None else tuple(_resized(files, shard_size))


def _written(spec: TensorSpec, dtype: str | None, shape: tuple[int, ...] | None) -> TensorSpec:
    kept = dtype if dtype and spec.dtype in FLOATING else spec.dtype
    return TensorSpec(spec.name, kept, shape or spec.shape)


def _safetensors_name(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    stem = file.rpartition(".")[0]
    return (
        folder
        + slash
        + stem.replace("pytorch_model", "model") * (not stem.startswith("diffusion"))
        + (stem * stem.startswith("diffusion"))
        + ".safetensors"
    )


def _resized(files: Iterable[OutputFile], limit: int) -> Iterable[OutputFile]:
    """The same tensors in files of at most `limit` bytes of data; one tensor may be larger."""
    by_component: dict[str, list[OutputFile]] = defaultdict(list)
    for file in files:
        by_component[file.prefix].append(file)
    for prefix, members in by_component.items():
        groups: list[list[TensorSpec]] = [[]]
        size = 0
        for spec in (spec for file in members for spec in file.specs):
            if groups[-1] and size + spec.nbytes > limit:
                groups.append([])
                size = 0
            groups[-1].append(spec)
            size += spec.nbytes
        folder = members[0].name.rpartition("/")[0]
        stem = "diffusion_pytorch_model" if "diffusion_pytorch_model" in members[0].name else "model"
        for number, group in enumerate(groups, 1):
            name = f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
            yield OutputFile(f"{folder}/{name}" if folder else name, prefix, tuple(group), None)


def _copies(
    files: Sequence[OutputFile], touched: Mapping[str, Sequence[tuple[int, int]]], origins: Mapping[str, str]
) -> tuple[Copy, ...]:
    """What files written afresh take over: whole tensors, and the gaps between the regions that change."""
    copies: list[Copy] = []
    for file in files:
        for spec in file.specs if file.clone is None else ():
            name = file.prefix + spec.name
            gaps = _gaps(touched.get(name, ()), spec.numel)
            if gaps:
                copies.append(Copy(name, origins.get(name, name), gaps, sum(end - start for start, end in gaps)))
    return tuple(copies)


def _gaps(spans: Sequence[tuple[int, int]], numel: int) -> tuple[tuple[int, int], ...]:
    gaps: list[tuple[int, int]] = []
    position = 0
    for start, end in (*spans, (numel, numel)):
        if start > position:
            gaps.append((position, start))
        position = max(position, end)
    return tuple(gaps)

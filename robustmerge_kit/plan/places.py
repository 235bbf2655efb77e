"""Where an adapter's sites lie in a base checkpoint: names brought together, shapes and orientation checked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..adapters import Adapter, Extra, SiteFactors
from ..checkpoint import Checkpoint
from ..errors import InputError

CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "gptj_conv1d", "clvp"}
"""Model types whose linear layers are stored [in, out] (transformers' Conv1D)."""

_FUSED = ("qkv_proj", "gate_up_proj", "Wqkv", "query_key_value", "c_attn", "in_proj_weight", "qkv", "kv_proj")
_PARTS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "query", "key", "value", "q", "k", "v"}
_EXPERT = re.compile(r"(?P<stem>.*\bexperts)\.(?P<expert>\d+)\.(?P<leaf>\w+)")
_EXPERT_PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""A fused expert parameter and the linears it holds, one below the other, as two families of models call them."""


@dataclass(frozen=True)
class Place:
    """A region of a base tensor that receives (part of) a site's delta.

    The region is `rows` x `cols` consecutive elements from `first` on. It receives rows `row` to `row + rows` of the delta, or
    of its transpose where it is `transposed`. expert: which of a fused site's deltas, None where there is one.
    """

    tensor: str
    rows: int
    cols: int
    first: int = 0
    row: int = 0
    transposed: bool = False
    expert: int | None = None

    @property
    def end(self) -> int:
        return self.first + self.rows * self.cols


def find_places(site: str, factors: SiteFactors, base: Checkpoint, conv1d: bool) -> tuple[Place, ...]:
    """The regions a site is folded into; none where the base has no such tensor, or one of another shape.

    conv1d: whether a square weight is stored [in, out].
    """
    if factors.kind == "experts":
        return _fused_experts(site, factors, base)
    name = f"{site}.weight"
    if name in base.tensors:
        place = _whole(name, base.tensors[name].spec.shape, factors, conv1d)
        return (place,) if place else ()
    return _one_expert(site, factors, base)


def _whole(name: str, shape: tuple[int, ...], factors: SiteFactors, conv1d: bool) -> Place | None:
    delta = (factors.d_out, factors.d_in)
    if factors.kind == "embedding":
        return Place(name, *reversed(delta), transposed=True) if shape == (factors.d_in, factors.d_out) else None
    if factors.kind == "conv" or len(shape) != 2:
        return Place(name, *delta) if shape == (factors.d_out, *factors.kernel) else None
    fits, flipped = shape == delta, shape == (factors.d_in, factors.d_out)
    if flipped and (not fits or conv1d):
        return Place(name, *reversed(delta), transposed=True)
    return Place(name, *delta) if fits else None


def _fused_experts(site: str, factors: SiteFactors, base: Checkpoint) -> tuple[Place, ...]:
    """A fused parameter of the adapter: fused in the base too, or one tensor for every expert and part.

    The base's shapes tell which axis is the output; of equally wide axes the adapter does.
    """
    delta = (factors.d_out, factors.d_in)
    turned = (factors.d_in, factors.d_out)
    ways = [(delta, False), (turned, True)] if factors.axes == "out_in" else [(turned, True), (delta, False)]
    for shape, transposed in ways[: 1 if delta == turned else 2]:
        found = _fused(site, factors.experts, shape, transposed, base) or _apart(site, factors.experts, shape, transposed, base)
        if found:
            return found
    return ()


def _fused(site: str, experts: int, shape: tuple[int, int], transposed: bool, base: Checkpoint) -> tuple[Place, ...]:
    if not _has(base, site, (experts, *shape)) and not (experts == 1 and _has(base, site, shape)):
        return ()
    size = shape[0] * shape[1]
    return tuple(Place(site, *shape, first=e * size, transposed=transposed, expert=e) for e in range(experts))


def _apart(site: str, experts: int, shape: tuple[int, int], transposed: bool, base: Checkpoint) -> tuple[Place, ...]:
    rows, cols = shape
    stem, _, parameter = site.rpartition(".")
    for names in _EXPERT_PARTS.get(parameter, ()):
        height = rows // len(names)
        found = [
            Place(f"{stem}.{e}.{leaf}.weight", height, cols, row=i * height, transposed=transposed, expert=e)
            for e in range(experts)
            for i, leaf in enumerate(names)
        ]
        if all(_has(base, place.tensor, (height, cols)) for place in found):
            return tuple(found)
    return ()


def _one_expert(site: str, factors: SiteFactors, base: Checkpoint) -> tuple[Place, ...]:
    """One expert's linear in the adapter, whose base holds the experts fused."""
    match = _EXPERT.fullmatch(site)
    if match is None:
        return ()
    for parameter, families in _EXPERT_PARTS.items():
        for names in families:
            name = f"{match['stem']}.{parameter}"
            if match["leaf"] not in names or name not in base.tensors:
                continue
            shape = base.tensors[name].spec.shape
            part, expert = names.index(match["leaf"]), int(match["expert"])
            if len(shape) != 3 or expert >= shape[0] or shape[1:] != (factors.d_out * len(names), factors.d_in):
                continue
            first = expert * shape[1] * shape[2] + part * factors.d_out * factors.d_in
            return (Place(name, factors.d_out, factors.d_in, first=first),)
    return ()


def _has(base: Checkpoint, name: str, shape: tuple[int, ...]) -> bool:
    return name in base.tensors and base.tensors[name].spec.shape == shape


def stored_flipped(adapter: Adapter, base: Checkpoint) -> bool:
    """Whether square weights are stored [in, out]: by the base's model type, else by the adapter's flag, which often lies."""
    kind = base.config.get("model_type")
    return kind in CONV1D_MODELS if isinstance(kind, str) else bool(adapter.config.get("fan_in_fan_out"))


# --- names --------------------------------------------------------------------------------------------------------------


def fit_names(adapter: Adapter, base: Checkpoint, partial: bool) -> tuple[Adapter, list[str]]:
    """The adapter under the base's names, and remarks: exact names first, else changes of prefix that map all sites.

    One change serves all sites; where none does, one for every component (the text model, the vision tower, ..) that maps all
    of the component's sites. Names are never matched one by one: the end of a name alone fits both towers of a model.

    partial: sites that the base does not have are left out and listed, as long as some match.

    Raises: InputError when no site matches, when only some do, when several changes of prefix fit equally well.
    """
    tied = _tied_sites(adapter, base)
    wanted = {site: factors for site, factors in adapter.sites.items() if site not in tied}
    flipped = stored_flipped(adapter, base)
    if all(find_places(site, factors, base, flipped) for site, factors in wanted.items()):
        return adapter, []
    for dialect in ((), *DIALECTS):
        spoken = _translated(adapter, dialect)
        sites = {site: factors for site, factors in spoken.sites.items() if site not in tied}
        if dialect and all(find_places(site, factors, base, flipped) for site, factors in sites.items()):
            return spoken, [f"{adapter.label}: modules renamed as its files spell them ({_listed(dialect)})"]
        changes = _by_component(sites, base, flipped, adapter.label)
        if changes:
            return _renamed(spoken, changes, base), [_say(adapter, change, sites) for change in changes]
    ranked = _ranked(wanted, base, flipped)
    exact = [site for site, factors in wanted.items() if find_places(site, factors, base, flipped)]
    best = ranked[0] if ranked and ranked[0][1] > len(exact) else None
    covered = best[1] if best else len(exact)
    if partial and covered:
        fitted = _renamed(adapter, (best[0],), base) if best else adapter
        lost = [site for site, factors in fitted.sites.items() if not find_places(site, factors, base, flipped)]
        notes = [f"{adapter.label}: {_arrow(best[0])} ({covered} of {len(wanted)})"] if best else []
        listed = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        kept = {site: factors for site, factors in fitted.sites.items() if site not in set(lost)}
        return replace(fitted, sites=kept), [*notes, f"{adapter.label}: {len(lost)} modules are not in the base: {listed}"]
    _refuse(adapter, base, wanted, exact, ranked, flipped)
    raise AssertionError


def _by_component(sites: Mapping[str, SiteFactors], base: Checkpoint, flipped: bool, label: str) -> tuple[tuple[str, str], ...]:
    """Changes of prefix that together map all sites onto distinct places: one for all, else one per component; () if none do.

    Raises: InputError when several fit equally well.
    """
    whole = _best(sites, base, flipped, label)
    if whole is not None:
        return (whole,)
    components: dict[str, dict[str, SiteFactors]] = defaultdict(dict)
    for site, factors in sites.items():
        components[_component_of(site)][site] = factors
    if len(components) == 1:
        return ()
    found = [_best(component, base, flipped, label) for component in components.values()]
    # Longer prefixes go first, or the change of a short one would apply to the others' sites as well.
    changes = tuple(sorted({change for change in found if change is not None}, key=lambda change: -len(change[0])))
    if None in found or len({old for old, _ in changes}) < len(changes):
        return ()
    return changes if _covered_by(sites, base, changes, flipped) == len(sites) else ()


def _best(sites: Mapping[str, SiteFactors], base: Checkpoint, flipped: bool, label: str) -> tuple[str, str] | None:
    """The change of prefix that maps all sites; among several the one whose prefixes share most words.

    Raises: InputError when that does not tell them apart.
    """
    total = [change for change, count in _ranked(sites, base, flipped) if count == len(sites)]
    shared = [len(set(old.split(".")) & set(new.split("."))) for old, new in total]
    best = [change for change, words in zip(total, shared, strict=True) if words == max(shared)]
    if len(best) > 1:
        listed = "; ".join(_arrow(change) for change in best[:4])
        raise InputError(
            f"{len(best)} changes of prefix map {len(sites)} of its modules onto the base: {listed}",
            where=label,
            hint="say which one: give `rename: {from: to}` on the adapter entry",
        )
    return best[0] if best else None


def _ranked(sites: Mapping[str, SiteFactors], base: Checkpoint, flipped: bool) -> list[tuple[tuple[str, str], int]]:
    counts = {change: _covered_by(sites, base, (change,), flipped) for change in _changes(sites, base)}
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _component_of(site: str) -> str:
    """The part of a name before the number of a layer; without a number, before the last component."""
    parts = site.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[:number])


def _refuse(
    adapter: Adapter,
    base: Checkpoint,
    wanted: Mapping[str, SiteFactors],
    exact: Collection[str],
    ranked: list[tuple[tuple[str, str], int]],
    flipped: bool,
) -> None:
    lost = next(site for site in wanted if site not in set(exact))
    _refuse_fused(adapter, base, lost)
    _refuse_vocabulary(adapter, base, lost, wanted[lost])
    if f"{lost}.weight" in base.tensors or lost in base.tensors:
        shape = base.tensors[f"{lost}.weight" if f"{lost}.weight" in base.tensors else lost].spec.shape
        factors = wanted[lost]
        raise InputError(
            f"module {lost}: the adapter's delta is [{factors.d_out}, {factors.d_in}], the base's weight {list(shape)}",
            where=adapter.label,
            hint="this adapter belongs to another base",
        )
    offers = "; ".join(f"{_arrow(change)} ({count} of {len(wanted)})" for change, count in ranked[:3] if count)
    tried = f"; changes of prefix tried: {offers}" if offers else ""
    some = next(name for name in base.tensors if name.endswith(".weight"))
    count = f"{len(exact)} of {len(wanted)}" if exact else "none"
    raise InputError(
        f"{count} of its modules are in the base: it has {lost}, the base e.g. {some.removesuffix('.weight')}{tried}",
        where=adapter.label,
        hint="give `rename: {from: to}` on the adapter entry"
        + (", or allow: [unmatched] to fold what matches" if exact or offers else "; is this the adapter's base?"),
    )


def _refuse_fused(adapter: Adapter, base: Checkpoint, lost: str) -> None:
    stem, _, leaf = lost.rpartition(".")
    if leaf not in _PARTS:
        return
    tail = ".".join(stem.split(".")[-3:])
    for fused in _FUSED:
        if any(name.endswith(f"{tail}.{fused}.weight") for name in base.tensors):
            raise InputError(
                f"has {lost}, the base has {fused} fused",
                where=adapter.label,
                hint="train on the same class as the base, or fold into a checkpoint with separate linears",
            )


def _refuse_vocabulary(adapter: Adapter, base: Checkpoint, lost: str, factors: SiteFactors) -> None:
    name = f"{lost}.weight"
    if name not in base.tensors or len(base.tensors[name].spec.shape) != 2:
        return
    rows, width = base.tensors[name].spec.shape
    tokens, size = (factors.d_in, factors.d_out) if factors.kind == "embedding" else (factors.d_out, factors.d_in)
    if size == width and tokens != rows and (factors.kind == "embedding" or is_head(lost)):
        raise InputError(
            f"{lost}: the adapter was trained with {tokens} tokens, the base has {rows}",
            where=adapter.label,
            hint="resize the base's embeddings first and save it",
        )


def _changes(sites: Mapping[str, SiteFactors], base: Checkpoint) -> set[tuple[str, str]]:
    """Changes of prefix (old, new) that could apply to all sites, from the longest common ends of names."""
    by_leaf: dict[str, set[str]] = defaultdict(set)
    for name in base.tensors:
        module = name.removesuffix(".weight")
        by_leaf[module.rpartition(".")[2]].add(module)
    shared = _shared_prefix(sites)
    samples = {site.rpartition(".")[2]: site for site in reversed(list(sites))}
    found: set[tuple[str, str]] = set()
    for leaf, mine in samples.items():
        for theirs in by_leaf.get(leaf, ()):
            left, right = mine.split("."), theirs.split(".")
            common = 0
            while common < min(len(left), len(right)) and left[-1 - common] == right[-1 - common]:
                common += 1
            old = ".".join(left[: len(left) - common])
            new = ".".join(right[: len(right) - common])
            if (old and f"{old}.") == shared[: len(old) + 1 if old else 0]:
                found.add((old and f"{old}.", new and f"{new}."))
    return found


def _shared_prefix(sites: Iterable[str]) -> str:
    """The longest text, ending with a dot, that all names begin with."""
    first, last = min(sites, default=""), max(sites, default="")
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind(".", 0, size) + 1]


def _covered_by(sites: Mapping[str, SiteFactors], base: Checkpoint, changes: Sequence[tuple[str, str]], flipped: bool) -> int:
    """How many sites the changes bring to places of their own."""
    taken: set[tuple[str, int]] = set()
    for site, factors in sites.items():
        old, new = next((change for change in changes if site.startswith(change[0])), ("", ""))
        for place in find_places(new + site.removeprefix(old), factors, base, flipped)[:1]:
            taken.add((place.tensor, place.first))
    return len(taken)


def _renamed(adapter: Adapter, changes: Sequence[tuple[str, str]], base: Checkpoint) -> Adapter:
    """Every name changed by the first change whose prefix it has."""

    def moved(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in changes if name.startswith(old)), name)

    extras: dict[str, Extra] = {}
    for name, extra in adapter.extras.items():
        extras[moved(name) if extra.kind != "saved" or moved(name) in base.tensors else name] = extra
    return replace(adapter, sites={moved(site): factors for site, factors in adapter.sites.items()}, extras=extras)


def _arrow(change: tuple[str, str]) -> str:
    return f"{change[0]}* -> {change[1]}*"


def _say(adapter: Adapter, change: tuple[str, str], sites: Collection[str]) -> str:
    count = sum(site.startswith(change[0]) for site in sites)
    return f"{adapter.label}: {_arrow(change)} ({count} of {len(sites)})"


# --- names inside a module ----------------------------------------------------------------------------------------------

Dialect = tuple[tuple[str, str], ...]

_ATTENTION: Dialect = (
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
)
DIALECTS: tuple[Dialect, ...] = (
    (*_ATTENTION, ("layers", "encoder.layer"), ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")),
    _ATTENTION,
    (("mlp.experts", "block_sparse_moe.experts"), ("mlp.gate", "block_sparse_moe.gate")),
    (("lm_head", "embed_out"),),
)
"""Parts of names in transformers 5's memory, and the same in the files it reads and writes: ViT and DeiT, DINOv2, Mixtral,
GPT-NeoX."""


def _translated(adapter: Adapter, dialect: Dialect) -> Adapter:
    """The adapter with parts of its names replaced, whole components only."""
    if not dialect:
        return adapter

    def spoken(name: str) -> str:
        framed = f".{name}."
        for old, new in dialect:
            framed = framed.replace(f".{old}.", f".{new}.")
        return framed[1:-1]

    sites = {spoken(site): factors for site, factors in adapter.sites.items()}
    return replace(adapter, sites=sites, extras={spoken(name): extra for name, extra in adapter.extras.items()})


def _listed(dialect: Dialect) -> str:
    return ", ".join(f"{old} -> {new}" for old, new in dialect)


# --- embeddings and heads -----------------------------------------------------------------------------------------------

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "shared", "tok_embeddings", "embed_in", "wte.emb")
_HEADS = ("lm_head", "embed_out", "output_projection", "proj_out", "decoder_head")


def is_head(site: str) -> bool:
    """Whether a module is an output head, by its name."""
    return site.rpartition(".")[2] in _HEADS


def input_embedding(base: Checkpoint, head: str) -> str | None:
    """The embedding that a head, stored or not, shares its weight with when weights are tied; None when it is not clear."""
    names = [name for name in base.tensors if name.removesuffix(".weight").rpartition(".")[2] in _EMBEDDINGS]
    near = [name for name in names if name.split(".")[0] == head.split(".")[0]]
    found = near if len(near) == 1 else names
    return found[0] if len(found) == 1 else None


def is_embedding(tensor: str) -> bool:
    """Whether a tensor is an input embedding of tokens, by its name."""
    return tensor.removesuffix(".weight").rpartition(".")[2] in _EMBEDDINGS


def _tied_sites(adapter: Adapter, base: Checkpoint) -> set[str]:
    """Heads the adapter has and the base does not store, since they are tied to the embedding."""
    tied: set[str] = set()
    for site, factors in adapter.sites.items():
        if not is_head(site) or factors.kind != "linear":
            continue
        if any(name == f"{site}.weight" or name.endswith(f".{site}.weight") for name in base.tensors):
            continue
        embedding = input_embedding(base, site)
        if embedding and base.tensors[embedding].spec.shape == (factors.d_out, factors.d_in):
            tied.add(site)
    return tied


def tied_heads(sites: Mapping[str, SiteFactors], base: Checkpoint) -> dict[str, str]:
    """Heads among the sites that the base does not store: site -> the embedding whose weight they share."""
    found: dict[str, str] = {}
    for site in sites:
        if is_head(site) and f"{site}.weight" not in base.tensors:
            embedding = input_embedding(base, site)
            if embedding:
                found[site] = embedding
    return found

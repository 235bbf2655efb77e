"""Every method of mergekit 0.1.5 on dense deltas, as `mergekit/<name>`, with mergekit's own parameter names and defaults.

    mergekit's inputs are the deltas s_t B_t A_t of one site, in float32, and a base of zeros where the method wants one.
    `weight` is the recipe's weight of each adapter; methods of mergekit without a weight get deltas that are weighted already.
    slerp, nearswap and arcee_fusion take exactly two inputs and treat the first as the base: the first adapter plays it.

The result is mergekit's, deviations from the papers included; where rmkit has a method of the same name, that one is exact
on small deltas and does not need the dense deltas in memory: n d_out d_in numbers, and about 4.5 times that while mergekit
works. Random masks are drawn from torch's generator as in mergekit, seeded by (seed, site), one site at a time.

Edge cases: an adapter whose delta is zero is handed over as zeros.
Source: mergekit 0.1.5, mergekit.merge_methods.merge_tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from pydantic import create_model

from ..errors import PluginError
from ..factors import Weights
from ..method import Draws, Elementwise, Params, Stats

PREFIX = "mergekit/"

NAMES = tuple(
    PREFIX + name
    for name in (
        "linear",
        "task_arithmetic",
        "ties",
        "dare_linear",
        "dare_ties",
        "della",
        "della_linear",
        "breadcrumbs",
        "breadcrumbs_ties",
        "sce",
        "model_stock",
        "slerp",
        "nuslerp",
        "multislerp",
        "karcher",
        "nearswap",
        "arcee_fusion",
        "ram",
        "ramplus_tl",
        "passthrough",
    )
)
"""What mergekit 0.1.5 registers; known without importing it."""

_RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")

# mergekit draws from torch's one global generator, so only one site at a time may use it.
_GENERATOR = threading.Lock()


@cache
def find(name: str) -> Elementwise:
    """The method `mergekit/<name>`; mergekit is imported now.

    Raises: PluginError when mergekit cannot be imported, has no such method, or speaks another interface than 0.1.5.
    """
    bare = name.removeprefix(PREFIX)
    try:
        from mergekit import merge_methods
    except Exception as error:
        raise PluginError(
            f"{name} needs mergekit, which cannot be imported: {error}", hint="pip install 'mergekit>=0.1.5,<0.2'"
        ) from error
    try:
        known = {method.spec.name: method.spec for method in merge_methods.registered_methods()}
        if bare not in known:
            raise PluginError(f"mergekit has no method {bare!r}", hint=f"it has {', '.join(sorted(known))}")
        return _method(known[bare], merge_methods.merge_tensors)
    except (AttributeError, TypeError, KeyError) as error:
        raise PluginError(
            f"{name}: this mergekit has another interface than 0.1.5: {error}", hint="pip install 'mergekit>=0.1.5,<0.2'"
        ) from error


def _method(spec: Any, merge_tensors: Callable[..., torch.Tensor]) -> Elementwise:
    contract, per_input = spec.contract, {parameter.name for parameter in spec.input_parameters}
    first_is_base = contract.base.value == "required" and contract.max_inputs == 2
    zero_base = contract.base.value in ("required", "optional") and not first_is_base
    weighs = "weight" in per_input
    fields: dict[str, Any] = {p.name: _field(p, p.name in per_input) for p in spec.parameters if p.name != "weight"}
    params = create_model("Mergekit_" + spec.name, __base__=Params, **fields)
    params.per_adapter = tuple(sorted(per_input - {"weight"}))

    def merge(x: torch.Tensor, weights: Weights, params: Any, draws: Draws, stats: Stats) -> torch.Tensor:
        deltas, each = _all_deltas(x, weights)
        if weighs:
            deltas = [delta / weight for delta, weight in zip(deltas, each, strict=True)]
        tensors = [torch.zeros_like(deltas[0]), *deltas] if zero_base else deltas
        values: dict[str, Any] = {"weight": each} if weighs else {}
        for field in fields:
            values[field] = list(params.each(field, len(deltas))) if field in per_input else getattr(params, field)
        base = 0 if zero_base or first_is_base else None
        with _seeded(draws, x) if spec.name in _RANDOM else nullcontext():
            return merge_tensors(tensors, spec.name, base_index=base, parameters=values)

    least = contract.min_non_base or max(1, contract.min_inputs - zero_base)
    most = contract.max_non_base or (contract.max_inputs and contract.max_inputs - zero_base)
    return Elementwise(
        name=PREFIX + spec.name,
        paper=spec.reference_url or "mergekit",
        params=params,
        merge=merge,
        adapters=(least, most),
        random=lambda params: spec.name in _RANDOM,
        whole=True,
        spaces=("full",),
    )


def _field(parameter: Any, per_input: bool) -> tuple[Any, Any]:
    kind = parameter.value_type | tuple[parameter.value_type, ...] if per_input else parameter.value_type
    return kind, ... if parameter.required else parameter.default


def _all_deltas(x: torch.Tensor, weights: Weights) -> tuple[list[torch.Tensor], list[float]]:
    """The weighted deltas of all adapters that count, zeros where they are zero, and their weights."""
    deltas = [torch.zeros_like(x[0])] * weights.count
    missing = weights.count - len(weights.each)
    rest = (weights.total - sum(weights.each)) / missing if missing else 0.0
    each = [rest if rest != 0 else 1.0] * weights.count
    for place, delta, weight in zip(weights.places, x.unbind(0), weights.each, strict=True):
        deltas[place], each[place] = delta, weight
    return deltas, each


@contextmanager
def _seeded(draws: Draws, x: torch.Tensor) -> Generator[None]:
    """Torch's generators at a state that (seed, site) fixes, and as they were afterwards."""
    seed = int(draws.uniform(None, "mergekit", x.new_empty(1)).view(torch.int32))
    devices = [x.device] if x.is_cuda else []
    with _GENERATOR, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield

"""What is fuzzed: four readers of strangers' text, each behind one function that takes bytes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any
from unittest import mock

import fuzz_mutations as mutations

from robustmerge_kit import git, hub, web
from robustmerge_kit.adapters import align, keys, patterns, peft
from robustmerge_kit.adapters import config as adapter_config
from robustmerge_kit.adapters.opened import Opened, read_json
from robustmerge_kit.errors import InputError
from robustmerge_kit.recipe import (
    extends,
    load,
    load_recipe,
    mergekit,
    mergekit_slices,
    parameters,
    problems,
    references,
    variables,
    yaml_text,
)
from robustmerge_kit.shards import Shard, TensorSpec, impostors, open_safetensors, stored
from robustmerge_kit.sources import Source

Mutate = Callable[[Random, bytes, list[str], bytes], bytes]


@dataclass(frozen=True)
class Target:
    """One reader. `read` returns nothing and raises RmkitError alone; `passed` is set when the outer syntax is right.

    modules: where lines are counted; leaving_out: functions there that do not read headers or text.
    """

    name: str
    read: Callable[[bytes, Probe], None]
    mutate: Mutate
    words: list[str]
    modules: tuple[ModuleType, ...]
    leaving_out: tuple[str, ...] = ()


@dataclass
class Probe:
    """Told by a target that the outer syntax of an input is right: JSON, YAML, keys of LoRA factors."""

    folder: Path
    passed: bool = False
    files: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def store(self, name: str, data: bytes) -> Path:
        """The input as a file, in place of the one before."""
        path = self.folder / name
        if name not in self.files:
            self.files[name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(self.files[name], data, 0)
        if len(data) != self.sizes.get(name):
            os.ftruncate(self.files[name], len(data))
            self.sizes[name] = len(data)
        return path


@contextmanager
def probing() -> Iterator[Probe]:
    """A probe with a folder in memory, where the system has one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, ExitStack() as stack:
        probe = Probe(Path(folder))
        for name, text in _NEIGHBOURS.items():
            (probe.folder / name).parent.mkdir(exist_ok=True)
            (probe.folder / name).write_text(text)
        stack.callback(lambda: [os.close(file) for file in probe.files.values()])
        for module, name in ((extends, "read_yaml"), (stored, "_parse_header")):
            stack.enter_context(mock.patch.object(module, name, _told(getattr(module, name), probe)))
        for module, name in ((git, "open_repository"), (hub, "open_repository"), (web, "fetch")):
            stack.enter_context(mock.patch.object(module, name, _no_network))
        yield probe


_NEIGHBOURS = {
    "parent.yaml": "merge_method: ties\nadapters: [a, b]\nparameters: {density: 0.5}\nvars: {x: 1, y: [1, 2]}\n",
    "full/config.json": "{}",
    "lora/adapter_config.json": "{}",
    "child.yaml": "extends: parent.yaml\noutput: {rank: 8}\n",
}
"""Recipes that others may extend, a model and an adapter."""


def _no_network(*arguments: Any, **named: Any) -> Any:
    raise InputError("there is no network here")


def _told(function: Callable[..., Any], probe: Probe) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        probe.passed = True
        return result

    return wrapped


def _read_recipe(data: bytes, probe: Probe) -> None:
    settings = {"x": ("2", "[1]", "a b", "0.5")[len(data) % 4]} if b"vars" in data and len(data) % 3 else {}
    load_recipe(probe.store("recipe.yaml", data), settings)


def _read_header(data: bytes, probe: Probe) -> None:
    open_safetensors(probe.store("adapter_model.safetensors", data))


def _read_config(data: bytes, probe: Probe) -> None:
    path = probe.store("adapter_config.json", data)
    config = read_json(path)
    probe.passed = True
    notes: list[str] = []
    allow = ("modified_init",) if len(data) % 2 else ()
    notes += adapter_config.check_config(config, str(path), allow)
    scaling = adapter_config.read_scaling(config, str(path), None if len(data) % 3 else 16.0, notes)
    adapter_config.base_of(config, notes)
    for module in _MODULES:
        scaling.scale(module, 8)
        scaling.announced(module)


_MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "a" * 60, "lm_head")


@dataclass(frozen=True)
class _Promise:
    """A tensor that is never read."""

    spec: TensorSpec
    path: Path = Path("adapter_model.safetensors")

    @property
    def where(self) -> str:
        return f"{self.path}: tensor {self.spec.name}"

    def read(self) -> Any:
        raise AssertionError("headers only")

    def read_flat(self, start: int, stop: int) -> Any:
        raise AssertionError("headers only")


def _read_keys(data: bytes, probe: Probe) -> None:
    """Names and shapes as a header that has been read, a configuration that has been read, and the recipe's adapter_name."""
    try:
        document = json.loads(data)
        tensors = {name: _Promise(TensorSpec(name, "float32", tuple(shape))) for name, shape in document["tensors"].items()}
        sizes = all(type(axis) is int and axis > 0 for ref in tensors.values() for axis in ref.spec.shape)
        header = {name: {"dtype": "F32", "shape": [], "data_offsets": [0, 0]} for name in tensors}
        stored._parse_header(json.dumps(header).encode(), "header")  # a name that no header can hold reaches no parser
        config, name = document["config"], document.get("adapter_name")
        if not sizes or not isinstance(config, dict) or not isinstance(name, str | None):
            return
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    probe.passed = any(key.leaf not in ("plain", "unknown") for key in keys.parse_keys(tensors)[0])
    path = Path("adapter_model.safetensors")
    source = Source("x", Path())
    adapter = peft.read_peft(Opened("x", source, Shard(path, tensors), config or None, None, adapter_name=name))
    align([adapter, adapter])


_RECIPE_WORDS = [
    *("merge_method", "adapters", "adapter", "parameters", "density", "weight", "overrides", "match", "output", "rank"),
    *("dtype", "format", "path", "space", "core", "ctm", "pre", "post", "norm_balance", "beta", "base_model", "seed", "extras"),
    *("missing", "models", "model", "slices", "sources", "layer_range", "filter", "value", "normalize", "int8_mask"),
    *("tokenizer_source", "ties", "linear", "dare_ties", "robustmerge", "variant", "official", "slerp", "t", "gain", "lambda"),
    *("energy", "budget", "average", "name", "rename", "alpha", "adapter_name", "allow", "unmatched", "kind", "for", "vllm"),
    *("extends", "vars", "meta", "x", "y", "sweep", "dora", "expert_axes", "chat_template", "rescale", "epsilon", "weights"),
    *("uniform", "first", "layers"),
]
_HEADER_WORDS = [*stored.CODES, "dtype", "shape", "data_offsets", "__metadata__", "format", "pt", "x"]
_CONFIG_WORDS = [
    *sorted(adapter_config.KNOWN),
    *sorted(adapter_config._VARIANTS),
    *("LORA", "IA3", "PeftType.LORA", "pissa", "corda", "mica", "gaussian", "all", "none", "CAUSAL_LM", "org/base", "q_proj"),
    *(r".*\.q_proj", r"model\.layers\.(0|1)\..*", "(a+)+", "(a|a)*", r"^x$", r"[^.]+\.mlp", "a{1,9}", "(?P<x>y)", "use_future"),
]
_KEY_WORDS = [
    *("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.model.layers.0.q_proj.lora_B.weight"),
    *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "default", "weight", "bias"),
    *("base_layer", "base_model.", "base_model.model.", "module.", "_orig_mod.", "student.", "modules_to_save", "lm_head"),
    *("original_module", "token_adapter", "trainable_tokens_delta", "hada_w1", "lokr_w1", "lora_E", "lora_diag", "absmax"),
    *("score", "quant_state", "tensors", "config", "adapter_name", "r", "lora_alpha", "peft_type", "LORA", "bias", "lora_only"),
    *("use_dora", "rank_pattern", "target_parameters", "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "experts"),
]

TARGETS = {
    target.name: target
    for target in (
        Target(
            "recipe",
            _read_recipe,
            mutations.mutate_yaml,
            _RECIPE_WORDS,
            (yaml_text, load, extends, variables, problems, parameters, mergekit, mergekit_slices, references),
            ("parse_settings", "parse_recipe"),
        ),
        Target(
            "safetensors-header",
            _read_header,
            mutations.mutate_safetensors,
            _HEADER_WORDS,
            (stored, impostors),
            ("is_safetensors", "OpenFile", "StoredTensor", "read_scalar", "map_safetensors", "refuse_impostor_file"),
        ),
        Target(
            "adapter-config",
            _read_config,
            mutations.mutate_json,
            _CONFIG_WORDS,
            (adapter_config, patterns),
            ("refuse_dora",),
        ),
        Target("peft-keys", _read_keys, mutations.mutate_json, _KEY_WORDS, (keys, peft)),
    )
}

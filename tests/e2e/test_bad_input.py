"""Every kind of bad input through the command line: its exit code, and a message a person can act on; nothing is written."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Call
from safetensors.torch import save_file
from small_adapters import PREFIX, entry, factors, sites, write_adapter, write_recipe

SITE = f"{PREFIX}model.layers.0.q_proj"
WEIGHTS = "adapter_model.safetensors"


def damage(change: Callable[[bytes], bytes], file: str = WEIGHTS) -> Callable[[Path], None]:
    """Replace a file of the adapter by what `change` makes of its bytes."""

    def apply(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return apply


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the JSON header of the weights, data unchanged."""

    def apply(raw: bytes) -> bytes:
        (length,) = struct.unpack("<Q", raw[:8])
        parsed = json.loads(raw[8 : 8 + length])
        changed = change(parsed)
        text = json.dumps(parsed if changed is None else changed).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]

    return damage(apply)


def config(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], file: str = WEIGHTS) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        stored = factors(sites(), 1)
        changed = change(stored)
        (folder / WEIGHTS).unlink()
        if file == WEIGHTS:
            save_file(changed if isinstance(changed, dict) else stored, folder / file)
        else:
            torch.save(stored if changed is None else changed, folder / file)

    return apply


def shift(parsed: dict[str, Any], by: int) -> None:
    entry = parsed[f"{SITE}.lora_B.weight"]
    entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]


def stretch(parsed: dict[str, Any]) -> None:
    """The last tensor claims a hundred rows more than the file holds."""
    last = max((each for name, each in parsed.items() if name != "__metadata__"), key=lambda each: each["data_offsets"][1])
    last["shape"][0] += 100
    last["data_offsets"][1] += 400 * last["shape"][1]


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def evil(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with (folder / "adapter_model.bin").open("wb") as file:
        pickle.dump({"a": Evil(folder.parent / "executed")}, file)


def evil_zip(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({f"{SITE}.lora_A.weight": torch.zeros(2, 3)}, folder / "adapter_model.bin")
    with zipfile.ZipFile(folder / "adapter_model.bin") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "adapter_model.bin", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, pickle.dumps(Evil(folder.parent / "executed")) if name.endswith("data.pkl") else data)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n"

INPUTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no configuration": (lambda d: (d / "adapter_config.json").unlink(), "adapter_config.json", "hint"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "no adapter_model.safetensors, .bin or .pt", "hint"),
    "configuration is not JSON": (damage(lambda _: b"{oops", "adapter_config.json"), "adapter_config.json", "is not JSON"),
    "configuration is a list": (damage(lambda _: b"[]", "adapter_config.json"), "adapter_config.json", "not an object"),
    "LFS pointer": (damage(lambda _: LFS), "Git LFS pointer (the real file has 123456 bytes)", "git lfs pull"),
    "LFS pointer as configuration": (damage(lambda _: LFS, "adapter_config.json"), "Git LFS pointer", "git lfs pull"),
    "web page": (damage(lambda _: b"<!DOCTYPE html><html>"), "is a web page, not weights", "download it again"),
    "empty file": (damage(lambda _: b""), "is truncated: 0 bytes", "again"),
    "two bytes": (damage(lambda raw: raw[:2]), "is truncated: 2 bytes", "again"),
    "header cut": (damage(lambda raw: raw[:50]), "is truncated: its header needs", "the file has 50"),
    "data cut": (damage(lambda raw: raw[:-9]), "is truncated", "the file holds"),
    "data too long": (damage(lambda raw: raw + b"12345"), "longer than its header says: 5 bytes", "again"),
    "announces 2^60 bytes": (damage(lambda raw: struct.pack("<Q", 2**60) + raw[8:]), "announces a header of", "again"),
    "header is not JSON": (damage(lambda raw: raw[:8] + b"x" + raw[9:]), "header that is not JSON", "again"),
    "overlapping offsets": (header(lambda h: shift(h, -8)), "overlap", SITE),
    "offsets out of the file": (header(stretch), "ends at data byte", "the file holds"),
    "a hole": (header(lambda h: shift(h, 10**9)), "has a hole of 192 bytes before tensor", "again"),
    "negative offsets": (header(lambda h: shift(h, -(10**9))), "are not two byte positions", SITE),
    "unknown dtype": (header(lambda h: h[f"{SITE}.lora_A.weight"].update(dtype="F7")), "unknown dtype 'F7'", SITE),
    "NaN": (tensors(lambda t: t[f"{SITE}.lora_A.weight"].fill_(float("nan"))), "holds NaN/Inf (40 values)", "hint"),
    "A without B": (tensors(lambda t: t.pop(f"{SITE}.lora_B.weight")), "1 modules have lora_A but no lora_B", SITE),
    "B without A": (tensors(lambda t: t.pop(f"{SITE}.lora_A.weight")), "1 modules have lora_B but no lora_A", SITE),
    "halves of two ranks": (
        tensors(lambda t: t.update({f"{SITE}.lora_B.weight": torch.ones(12, 3)})),
        "rank 4 of A against 3 of B",
        "model.layers.0.q_proj",
    ),
    "empty tensors": (tensors(lambda t: {name: torch.zeros(0) for name in t}), "tensors are empty", "gathered weights"),
    "quantised": (
        tensors(lambda t: t.update({f"{SITE}.lora_A.weight": torch.ones(4, 10, dtype=torch.int8)})),
        "int8: quantised factors are not supported",
        SITE,
    ),
    "no LoRA at all": (
        tensors(lambda t: {"model.embed.weight": torch.ones(3, 3)}),
        "holds no LoRA factors",
        "model.embed.weight",
    ),
    "a list as pickle": (tensors(lambda t: list(t.values()), "adapter_model.bin"), "holds a list, not a dictionary", "hint"),
    "a number in a pickle": (tensors(lambda t: {"a": 3}, "adapter_model.bin"), "'a' is a int, not a tensor", "hint"),
    "code in a pickle": (evil, "Python objects, not only tensors", "convert it with a tool you trust"),
    "code in a zip pickle": (evil_zip, "Python objects, not only tensors", "convert it with a tool you trust"),
    "half a zip": (
        lambda d: (tensors(lambda t: None, "adapter_model.bin")(d), damage(lambda raw: raw[:200], "adapter_model.bin")(d))[1],
        "is not a whole torch file",
        "again",
    ),
    "DoRA": (config(use_dora=True), "DoRA", "hint"),
    "another kind": (config(peft_type="LOHA"), "LOHA", "LoRA"),
    "no alpha": (config(lora_alpha=None), "lora_alpha", "hint"),
    "modified base": (config(init_lora_weights="pissa"), "pissa", "modified_init"),
    "replicated layers": (config(layer_replication=[[0, 2]]), "layer_replication", "hint"),
    "aLoRA": (config(alora_invocation_tokens=[1, 2]), "alora", "hint"),
    "unknown variant": (config(use_qalora=True), "use_qalora", "hint"),
    "a full model": (
        lambda d: ((d / "adapter_config.json").rename(d / "config.json"), (d / WEIGHTS).rename(d / "model.safetensors"))[1],
        "model",
        "hint",
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_broken_inputs_end_with_3(case: str, tmp_path: Path, call: Call) -> None:
    spoil, *parts = INPUTS[case]
    adapters = [write_adapter(tmp_path / "good"), write_adapter(tmp_path / "bad", 1)]
    spoil(adapters[1])
    code, _, said = call("run", write_recipe(tmp_path, adapters), tmp_path / "outputs" / "out")
    assert code == 3, said
    assert [part for part in ("bad", *parts) if part.lower() not in said.lower()] == []
    assert "Traceback" not in said
    assert "bug:" not in said
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "outputs").exists() or list((tmp_path / "outputs").iterdir()) == []


REFERENCES = {
    "no such folder": ("./nowhere", "./nowhere: no such folder"),
    "a file that is no adapter": ("./recipe.yaml", "recipe.yaml: is neither safetensors nor a torch file"),
    "several adapters": ("./family", "family"),
    "sub-folder that climbs out": ("./good:../bad", ".."),
    "two at signs": ("./good@a@b", "good@a@b"),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_bad_references(case: str, tmp_path: Path, call: Call) -> None:
    reference, part = REFERENCES[case]
    for name in ("good", "bad", "family/a", "family/b"):
        write_adapter(tmp_path / name)
    code, _, said = call("run", write_recipe(tmp_path, [reference]), tmp_path / "out")
    assert code in (2, 3)
    assert part in said
    assert "bug:" not in said


PLANS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "different modules": (
        {"where": {"model.layers.0.q_proj": (12, 10)}},
        {},
        ("adapter 2 (second): lacks 3 of 4 sites", "set missing: zero"),
    ),
    "different widths": (
        {"where": sites(2, {"q_proj": (12, 20), "up_proj": (14, 20)})},
        {},
        ("q_proj", "different base models?"),
    ),
    "unequal ranks": ({"r": 3}, {"method": "peft_linear"}, ("peft_linear needs adapters of equal rank, got ranks 3, 4",)),
    "no rank for svd": ({}, {"method": "svd"}, ("svd needs output.rank", "hint: set e.g. output: {rank: 16}")),
    "a rank for cat": ({}, {"method": "cat", "output": {"rank": 2}}, ("cat keeps the full rank, but output.rank is 2",)),
    "an override that matches nothing": (
        {},
        {"overrides": [{"match": "*.attn.*", "parameters": {"gain": 2.0}}]},
        ("overrides[0].match '*.attn.*' matches none of the 4 sites", "sites look like model.layers.0.q_proj"),
    ),
    "a space that makes no sense": ({}, {"space": "core"}, ("linear runs in ctm, not in space 'core'",)),
    "not the number of adapters": (
        {},
        {"method": "slerp", "parameters": {"t": 0.5}, "extra": 1},
        ("slerp merges 2 adapters, got 3",),
    ),
    "weights that cancel": ({}, {"weights": (1.0, -1.0)}, ("linear: the weights 1, -1 sum to zero", "set normalize: false")),
}


@pytest.mark.parametrize("case", PLANS)
def test_inputs_that_do_not_fit_together(case: str, tmp_path: Path, call: Call) -> None:
    second, keys, parts = PLANS[case]
    adapters = [write_adapter(tmp_path / "first"), write_adapter(tmp_path / "second", 1, **second)]
    adapters += [write_adapter(tmp_path / f"more{i}", i) for i in range(keys.get("extra", 0))]
    weights = keys.get("weights", (1.0,) * len(adapters))
    entries = [entry(path, weight) for path, weight in zip(adapters, weights, strict=True)]
    recipe = write_recipe(tmp_path, entries, **{k: v for k, v in keys.items() if k not in ("extra", "weights")})
    code, _, said = call("run", recipe, tmp_path / "out")
    assert [part for part in parts if part not in said] == []
    assert code in (2, 3, 4)
    assert "bug:" not in said
    assert not (tmp_path / "out").exists()


RECIPES = {
    "not YAML": ("merge_method: [linear\n", "recipe.yaml:"),
    "empty": ("", "recipe.yaml"),
    "a list": ("- linear\n", "recipe.yaml:1:1"),
    "two recipes": ("merge_method: linear\nadapters: [./a]\n---\nmerge_method: cat\n", "recipe.yaml:3:1"),
    "the same key twice": ("merge_method: linear\nmerge_method: cat\nadapters: [./a]\n", "recipe.yaml:2:1"),
    "wrong type": ("merge_method: linear\nadapters: [./a]\nseed: soon\n", "recipe.yaml:3:7"),
    "wrong method": ("merge_method: liner\nadapters: [./a]\n", "linear"),
    "wrong parameter": ("merge_method: robustmerge\nadapters: [./a]\nparameters: {densty: 0.1}\n", "density"),
    "out of range": ("merge_method: robustmerge\nadapters: [./a]\nparameters: {density: 1.5}\n", "1.5"),
    "no adapters": ("merge_method: linear\nadapters: []\n", "adapters"),
    "bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
        "recipe.yaml",
    ),
    "not text": (b"\xff\xfe\x00\x01\x80".decode("latin-1"), "recipe.yaml"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_broken_recipes_end_with_2(case: str, tmp_path: Path, call: Call) -> None:
    text, part = RECIPES[case]
    (tmp_path / "recipe.yaml").write_bytes(text.encode("latin-1"))
    code, _, said = call("run", tmp_path / "recipe.yaml", tmp_path / "out")
    assert code == 2
    assert part in said
    assert "bug:" not in said


def test_an_input_that_changes_while_merging_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustmerge_kit import merge as room
    from robustmerge_kit.errors import InputError
    from robustmerge_kit.recipe import load_recipe

    adapters = [write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", 1)]
    recipe = load_recipe(write_recipe(tmp_path, adapters))

    def shorten(_: Any) -> None:
        os.truncate(adapters[1] / WEIGHTS, 900)

    with pytest.raises(InputError, match="changed after it was opened"):
        room.merge(recipe, tmp_path / "out", planned=shorten)
    assert not (tmp_path / "out").exists()


def test_different_bases_are_named(tmp_path: Path, call: Call) -> None:
    adapters = [write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", 1, base_model_name_or_path="org/other-7b")]
    code, _, said = call("run", write_recipe(tmp_path, adapters), tmp_path / "out")
    assert code == 0
    assert "org/tiny" in said
    assert "org/other-7b" in said

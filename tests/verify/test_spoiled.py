"""What is done to an output, its receipt, its recipe or its inputs is found, and named."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outputs
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_adapters import PREFIX, write_adapter

from robustmerge_kit.errors import InputError, RmkitError
from robustmerge_kit.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished outputs by name, each with its inputs beside it."""
    found: dict[str, Path] = {}
    for method, keys in (("linear", {}), ("robustmerge", {}), ("ties", {"parameters": {"density": 0.2}})):
        for kind in ("adapter", "model"):
            place = tmp_path_factory.mktemp(f"{method}-{kind}")
            adapters = outputs.write_inputs(place, torch.bfloat16)
            base = outputs.write_base(place, torch.bfloat16, shards=2) if kind == "model" else None
            found[f"{method} {kind}"] = outputs.merge(place, adapters, method, base, **keys)
    return found


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an output and its inputs, to be spoiled."""

    def copy(name: str) -> Path:
        shutil.copytree(made[name].parent, tmp_path / "copy")
        return tmp_path / "copy" / "out"

    return copy


def weights_of(out: Path) -> Path:
    return min(out.glob("*.safetensors"))


# --- bytes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear adapter", "ties model"])
def test_any_flipped_bit_is_found_by_the_hashes(copied: Callable[[str], Path], name: str) -> None:
    out = copied(name)
    draw = random.Random(3)
    for weights in sorted(out.glob("*.safetensors")):
        whole = weights.read_bytes()
        for byte in [0, 9, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(4))]:
            outputs.flip(weights, byte, 1 << draw.randrange(8))
            report = outputs.check(out, samples=0)
            assert report.findings[0].where == weights.name
            assert not report.good
            weights.write_bytes(whole)
    assert outputs.check(out).good


@pytest.mark.parametrize("name", ["linear adapter", "robustmerge adapter", "linear model", "robustmerge model", "ties model"])
def test_a_flipped_byte_is_found_by_its_number_where_the_receipt_follows(copied: Callable[[str], Path], name: str) -> None:
    out = copied(name)
    draw = random.Random(4)
    receipt = (out / "rmkit.json").read_bytes()
    for weights in sorted(out.glob("*.safetensors")):
        whole, begin = weights.read_bytes(), outputs.header_end(weights)
        for byte in [5, 20, begin, len(whole) - 1, *(draw.randrange(begin, len(whole)) for _ in range(4))]:
            outputs.flip(weights, byte)
            outputs.forge(out)
            report = outputs.check(out)
            assert not report.good, f"byte {byte}"
            assert not any("sha256" in finding.what for finding in report.findings)
            weights.write_bytes(whole)
            (out / "rmkit.json").write_bytes(receipt)


@pytest.mark.parametrize("tensor", ["model.norm.weight", "lm_head.weight", "model.layers.1.up_proj.weight"])
def test_a_changed_tensor_is_named_with_the_place_of_the_first_difference(copied: Callable[[str], Path], tensor: str) -> None:
    out = copied("linear model")
    for path in out.glob("*.safetensors"):
        tensors = load_file(path)
        if tensor in tensors:
            tensors[tensor].view(-1)[7] += 0.5
            save_file(tensors, path, metadata={"format": "pt"})
    outputs.forge(out)
    problems = outputs.check(out).problems
    assert len(problems) == 1
    assert tensor.removesuffix(".weight") in problems[0].where
    assert "first at [7]" in problems[0].what or "first at [0, 7]" in problems[0].what


def test_a_sample_looks_at_some_and_says_of_how_many(copied: Callable[[str], Path]) -> None:
    out = copied("linear model")
    report = outputs.check(out, samples=2, seed=1)
    assert (len(report.checks), report.sites, report.tensors) == (4, 4, 3)
    other = outputs.check(out, samples=2, seed=5)
    assert {check.name for check in report.checks} != {check.name for check in other.checks}


# --- the folder -----------------------------------------------------------------------------------------------------------


def test_files_that_are_missing_changed_or_too_many_are_named(copied: Callable[[str], Path]) -> None:
    out = copied("linear model")
    (out / "tokenizer.json").unlink()
    (out / "generation_config.json").write_text('{"a": 1}')
    (out / "extra.bin").write_text("x")
    (out / ".hidden").write_text("x")
    found = {finding.where: finding.what for finding in outputs.check(out, samples=0).findings}
    assert "missing" in found["tokenizer.json"]
    assert "bytes" in found["generation_config.json"]
    assert "not in the receipt" in found["extra.bin"]
    assert ".hidden" not in found


def test_an_edited_recipe_is_found_and_not_run(copied: Callable[[str], Path]) -> None:
    out = copied("linear adapter")
    recipe = out / "rmkit_recipe.yaml"
    recipe.write_text(recipe.read_text().replace('"linear"', '"task_arithmetic"'))
    report = outputs.check(out)
    assert [finding.where for finding in report.problems] == ["rmkit_recipe.yaml"]
    assert not report.checks


def test_a_recipe_with_other_weights_under_a_forged_receipt_is_found(copied: Callable[[str], Path]) -> None:
    out = copied("linear adapter")
    recipe = out / "rmkit_recipe.yaml"
    text = json.loads(recipe.read_text())
    text["adapters"][1] = {"adapter": text["adapters"][1], "parameters": {"weight": 1.01}}
    recipe.write_text(json.dumps(text))
    outputs.forge(out)
    assert len(outputs.check(out).problems) == 4


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_another_dtype_is_found(copied: Callable[[str], Path], kind: str) -> None:
    out = copied(f"linear {kind}")
    for path in out.glob("*.safetensors"):
        save_file({name: value.float() for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    outputs.forge(out)
    findings = outputs.check(out, samples=0).findings
    assert any("float32" in finding.what and "bfloat16" in finding.what for finding in findings)


def test_another_alpha_is_found(copied: Callable[[str], Path]) -> None:
    out = copied("linear adapter")
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}))
    outputs.forge(out)
    assert len(outputs.check(out).problems) == 4


def test_tensors_that_are_missing_or_too_many_are_named(copied: Callable[[str], Path]) -> None:
    out = copied("linear model")
    path = weights_of(out)
    tensors = load_file(path)
    tensors["model.extra.weight"] = torch.ones(3)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.extra.weight"] = path.name
    index["metadata"]["total_size"] += 1
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(tensors, path, metadata={"format": "pt"})
    outputs.forge(out)
    found = {finding.where: finding.what for finding in outputs.check(out, samples=0).findings}
    assert "nothing adds it" in found["model.extra.weight"]
    assert "total_size" in found["model.safetensors.index.json"]


def test_a_changed_configuration_of_a_model_is_named_by_its_key(copied: Callable[[str], Path]) -> None:
    out = copied("linear model")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "vocab_size": 21}))
    (out / "tokenizer.json").write_text("{}")
    outputs.forge(out)
    found = {finding.where: finding.what for finding in outputs.check(out, samples=0).findings}
    assert found["config.json"] == "vocab_size is 21, expected 20"
    assert found["tokenizer.json"] == "differs from the base's"


# --- inputs ---------------------------------------------------------------------------------------------------------------


def test_a_changed_input_is_named(copied: Callable[[str], Path]) -> None:
    out = copied("linear model")
    write_adapter(out.parent / "a1", 9, where=outputs.WHERE, dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"\./a1: adapter_model.safetensors was changed"):
        outputs.check(out)


def test_a_changed_base_is_named(copied: Callable[[str], Path]) -> None:
    out = copied("linear model")
    shard = sorted((out.parent / "base").glob("*.safetensors"))[1]
    outputs.flip(shard, shard.stat().st_size - 1)
    with pytest.raises(InputError, match=rf"\./base: {shard.name} was changed"):
        outputs.check(out)


def test_missing_inputs_are_all_named(copied: Callable[[str], Path]) -> None:
    out = copied("linear adapter")
    shutil.rmtree(out.parent / "a0")
    shutil.rmtree(out.parent / "a2")
    with pytest.raises(RmkitError) as error:
        outputs.check(out)
    assert "./a0: is missing" in error.value.what
    assert "./a2: is missing" in error.value.what
    assert error.value.exit_code == 3


def test_inputs_are_looked_for_above_the_output_and_where_one_says(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied("linear adapter")
    deep = out.parent / "far" / "below" / "out"
    shutil.copytree(out, deep)
    assert verify(deep, samples=None).good
    away = tmp_path / "away" / "out"
    shutil.copytree(out, away)
    with pytest.raises(RmkitError, match="is missing"):
        verify(away)
    assert verify(away, place=out.parent).good
    monkeypatch.chdir(out.parent)
    assert verify(away).good


def test_no_receipt_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no receipt"):
        verify(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        verify(tmp_path / "none")


# --- what lies beside the sites -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mean", "first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_tensors_of_the_inputs(tmp_path: Path, rule: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    for i in range(2):
        heads = {"lm_head.weight": torch.randn(20, 64, generator=draw).to(dtype)}
        write_adapter(tmp_path / f"a{i}", i, where=outputs.WHERE, dtype=dtype, extras=heads, modules_to_save=["lm_head"])
    base = outputs.write_base(tmp_path, dtype)
    for kind in (None, base):
        out = outputs.merge(tmp_path, ["./a0", "./a1"], "linear", kind, extras=rule)
        report = outputs.check(out)
        assert report.problems == ()
        path = weights_of(out)
        tensors = load_file(path)
        name = "lm_head.weight" if kind else f"{PREFIX}lm_head.weight"
        tensors[name][3, 5] += 0.1
        save_file(tensors, path, metadata={"format": "pt"})
        outputs.forge(out)
        assert [finding.where for finding in outputs.check(out).problems] == [name]


@pytest.mark.parametrize(
    ("keys", "config"),
    [({"output": {"dtype": "float16"}}, {}), ({}, {"tie_word_embeddings": True}), ({"output": {"rank": 2}}, {})],
    ids=["cast", "untied", "truncated"],
)
def test_models_that_are_written_afresh(tmp_path: Path, keys: dict[str, Any], config: dict[str, Any]) -> None:
    adapters, base = outputs.write_inputs(tmp_path, torch.float32), outputs.write_base(tmp_path, torch.float32, **config)
    out = outputs.merge(tmp_path, adapters, "dare_linear", base, parameters={"density": 0.5}, **keys)
    assert outputs.check(out).problems == ()


def test_zero_and_missing_sites(tmp_path: Path) -> None:
    adapters = outputs.write_inputs(tmp_path, torch.float32)
    for i, drop in ((1, False), (2, True)):
        path = tmp_path / f"a{i}" / "adapter_model.safetensors"
        tensors = load_file(path)
        for name in [name for name in tensors if "layers.0.q_proj" in name]:
            tensors[name] = torch.zeros_like(tensors[name])
            if drop:
                del tensors[name]
        save_file(tensors, path, metadata={"format": "pt"})
    for method in ("linear", "star", "karcher", "robustmerge", "model_stock", "tsv_m"):
        report = outputs.check(outputs.merge(tmp_path, adapters, method, missing="zero"))
        assert report.problems == (), method
        assert {check.by for check in report.checks} == {"independent"}


@pytest.mark.parametrize("method", ["ties", "dare_linear", "robustmerge", "breadcrumbs"])
def test_a_density_of_its_own_stays_with_its_adapter_where_another_delta_is_zero(tmp_path: Path, method: str) -> None:
    adapters = outputs.write_inputs(tmp_path, torch.float32)
    path = tmp_path / "a1" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k: v * ("layers.0.q_proj" not in k) for k, v in tensors.items()}, path, metadata={"format": "pt"})
    entries = [{"adapter": a, "parameters": {"density": d}} for a, d in zip(adapters, (0.2, 0.3, 0.6), strict=True)]
    report = outputs.check(outputs.merge(tmp_path, entries, method))
    assert report.problems == ()
    assert {check.by for check in report.checks} == {"independent"}


def test_a_seed_of_the_command_line_is_taken_from_the_receipt(tmp_path: Path) -> None:
    from small_adapters import write_recipe

    from robustmerge_kit.merge import merge
    from robustmerge_kit.recipe import load_recipe

    adapters = outputs.write_inputs(tmp_path, torch.float32)
    recipe = load_recipe(write_recipe(tmp_path, adapters, "dare_linear", parameters={"density": 0.5}))
    merge(recipe.model_copy(update={"seed": 11}), tmp_path / "out")
    assert outputs.check(tmp_path / "out").good
    receipt = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    receipt["recipe"]["seed"] = 12
    (tmp_path / "out" / "rmkit.json").write_text(json.dumps(receipt))
    assert len(outputs.check(tmp_path / "out").problems) == 4

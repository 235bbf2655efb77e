"""What a worker does about one task, in this process: checks, merges, what counts as done, how failures are told."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import content, run, sites, write_adapter, write_adapters, write_recipe
from small_bases import tensors, write_base

from robustmerge_kit import checkpoint, shards
from robustmerge_kit.adapters import read as peft
from robustmerge_kit.batch.claim import claim, claim_file
from robustmerge_kit.batch.tasks import Checked, Failure, Job, Merged, Task
from robustmerge_kit.batch.work import carry_out

BASE = {"kind": "model", "dtype": "float32"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, write_adapters(tmp_path / "in", 2), "linear")


def task(recipe: Path, kind: Any, **keys: Any) -> Task:
    return Task(0, kind, Job("job", str(recipe), out=recipe.parent / "out" / "x", log=recipe.parent / "job.log"), **keys)


def test_check_then_merge_then_nothing_to_do(recipe: Path) -> None:
    out = recipe.parent / "out" / "x"
    checked = carry_out(task(recipe, "check"))
    assert isinstance(checked, Checked)
    assert (checked.target, checked.done, checked.sites) == (out, False, 4)
    assert checked.needs > 0
    assert checked.inputs == (recipe.parent / "in/adapter0", recipe.parent / "in/adapter1")
    assert not out.parent.exists(), "a check writes nothing but the log"
    seen: list[int] = []
    merged = carry_out(task(recipe, "merge"), seen.append)
    assert isinstance(merged, Merged)
    assert (merged.target, merged.skipped, merged.sites) == (out, False, 4)
    assert seen == [1, 2, 3, 4]
    assert content(out) == content(run(recipe, recipe.parent / "alone").path)
    again = carry_out(task(recipe, "check"))
    assert isinstance(again, Checked)
    assert again.done
    assert carry_out(task(recipe, "merge")) == Merged(out, skipped=True)
    log = (recipe.parent / "job.log").read_text()
    assert all(word in log for word in ("check, attempt 1", "4 sites, to do", "merge, attempt 1", "done in", "done already"))


def change_recipe(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + " ")


def change_input(recipe: Path) -> None:
    write_adapter(recipe.parent / "in" / "adapter1", 99)


def change_config(recipe: Path) -> None:
    path = recipe.parent / "in" / "adapter0" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 4.0}))


def lose_weights(recipe: Path) -> None:
    (recipe.parent / "out/x/adapter_model.safetensors").unlink()


def cut_weights(recipe: Path) -> None:
    os.truncate(recipe.parent / "out/x/adapter_model.safetensors", 100)


def lose_receipt(recipe: Path) -> None:
    (recipe.parent / "out/x/rmkit.json").unlink()


def spoil_receipt(recipe: Path) -> None:
    (recipe.parent / "out/x/rmkit.json").write_text('{"recipe": 3}')


CHANGES = {
    change_recipe: "it was made from another recipe",
    change_input: "its input adapter1 was another",
    change_config: "its input adapter0 was another",
    lose_weights: "its file adapter_model.safetensors is missing or was changed",
    cut_weights: "its file adapter_model.safetensors is missing or was changed",
    lose_receipt: "it has no receipt of rmkit",
    spoil_receipt: "its receipt is of another version of rmkit",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_not_done(change: Any, recipe: Path) -> None:
    carry_out(task(recipe, "merge"))
    change(recipe)
    refused = carry_out(task(recipe, "check"))
    assert isinstance(refused, Failure)
    assert refused.exit_code == 5
    assert CHANGES[change] in refused.reason
    assert not refused.transient
    allowed = carry_out(task(recipe, "check", overwrite=True))
    assert isinstance(allowed, Checked)
    assert not allowed.done
    assert isinstance(carry_out(task(recipe, "merge", overwrite=True)), Merged)
    done = carry_out(task(recipe, "check"))
    assert isinstance(done, Checked)
    assert done.done


def test_touching_an_input_changes_nothing(recipe: Path) -> None:
    carry_out(task(recipe, "merge"))
    (recipe.parent / "in/adapter0/adapter_model.safetensors").touch()
    done = carry_out(task(recipe, "check"))
    assert isinstance(done, Checked)
    assert done.done


def test_restart_merges_what_is_done(recipe: Path) -> None:
    carry_out(task(recipe, "merge"))
    before = (recipe.parent / "out/x").stat().st_ino
    merged = carry_out(task(recipe, "merge", overwrite=True, restart=True))
    assert isinstance(merged, Merged)
    assert not merged.skipped
    assert (recipe.parent / "out/x").stat().st_ino != before


def test_a_claimed_output_is_busy(recipe: Path) -> None:
    with claim(recipe.parent / "out" / "x"):
        busy = carry_out(task(recipe, "merge"))
    assert isinstance(busy, Failure)
    assert busy.busy
    assert isinstance(carry_out(task(recipe, "merge")), Merged)


def test_what_a_killed_batch_left_beside_an_output_is_removed(recipe: Path) -> None:
    carry_out(task(recipe, "merge"))
    out = recipe.parent / "out" / "x"
    claim_file(out).touch()
    (out.parent / ".x.rmkit-part-0123abcd").mkdir()
    carry_out(task(recipe, "check"))
    assert [path.name for path in out.parent.iterdir()] == ["x"]


def test_a_bug_is_a_failure_with_its_traceback_in_the_log(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **keys: Any) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("robustmerge_kit.batch.work.merge", broken)
    failed = carry_out(task(recipe, "merge"))
    assert isinstance(failed, Failure)
    assert (failed.exit_code, failed.transient) == (70, False)
    assert "ZeroDivisionError: by nought" in failed.reason
    assert "Traceback" in (recipe.parent / "job.log").read_text()
    assert not list((recipe.parent / "out").glob(".*"))


def test_variables(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2), "linear", vars={"seed": 1}, seed="<seed>")
    good = Job("job", str(recipe), settings={"seed": "7"}, out=tmp_path / "out")
    assert isinstance(carry_out(Task(0, "merge", good)), Merged)
    assert json.loads((tmp_path / "out/rmkit.json").read_text())["recipe"]["seed"] == 7
    bad = carry_out(Task(0, "check", Job("job", str(recipe), settings={"sead": "7"})))
    assert isinstance(bad, Failure)
    assert "no variable 'sead'" in bad.reason


def test_headers_are_read_once_for_many_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base(tmp_path / "base", tensors(), shards=3)
    adapters = write_adapters(tmp_path, 2)
    read: list[str] = []

    def noted(real: Any) -> Any:
        return lambda path: (read.append(str(path.relative_to(tmp_path))), real(path))[1]

    for module, name in ((shards, "_open"), (checkpoint, "_parse_index"), (peft, "read_json")):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
    time.sleep(0.15)
    for method in ("linear", "ties", "svd"):
        keys = {"rank": 2} if method == "svd" else {}
        recipe = write_recipe(tmp_path, adapters, method, base_model="base", output={**BASE, **keys})
        checked = carry_out(task(recipe, "check"))
        assert isinstance(checked, Checked), checked
        assert checked.parts == 3
    configs = [f"adapter{number}/adapter_config.json" for number in range(2)]
    weights = [f"adapter{number}/adapter_model.safetensors" for number in range(2)]
    base = [f"base/model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(read) == sorted([*configs, *weights, *base, "base/model.safetensors.index.json"])


def test_folded_models(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    adapters = write_adapters(tmp_path, 2, where=sites(2))
    base = tmp_path / "base"
    base.mkdir()
    weights = {f"{site}.weight": torch.ones(shape) for site, shape in sites(2).items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    recipe = write_recipe(tmp_path, adapters, "linear", base_model="base", output=BASE)
    checked = carry_out(task(recipe, "check"))
    assert isinstance(checked, Checked), checked
    assert base in checked.inputs
    assert isinstance(carry_out(task(recipe, "merge")), Merged)
    done = carry_out(task(recipe, "check"))
    assert isinstance(done, Checked)
    assert done.done
    time.sleep(0.02)
    save_file({**weights, next(iter(weights)): torch.zeros(12, 10)}, base / "model.safetensors", metadata={"format": "pt"})
    refused = carry_out(task(recipe, "check"))
    assert isinstance(refused, Failure)
    assert "its base was another" in refused.reason

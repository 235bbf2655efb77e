"""Every form a base comes in: shards, pickles, diffusers' folders, dtypes, shard sizes; and what is copied along."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_adapters import run, sites, write_adapter, write_adapters, write_recipe
from small_bases import all_bytes, read_weights, tensors, write_base
from torch import Tensor

from robustmerge_kit.errors import InputError
from robustmerge_kit.plan import Layout
from robustmerge_kit.resources import Resources


def recipe_for(place: Path, **output: Any) -> Path:
    return write_recipe(
        place, write_adapters(place, 2), "task_arithmetic", base_model="base", output={"kind": "model", **output}
    )


def wanted(place: Path) -> dict[str, Tensor]:
    """Base plus the adapters' deltas in float64."""
    found = {name: value.double() for name, value in tensors().items()}
    for i in range(2):
        stored = load_file(place / f"adapter{i}" / "adapter_model.safetensors")
        for site in sites():
            a, b = (stored[f"base_model.model.{site}.lora_{x}.weight"].double() for x in "AB")
            found[f"{site}.weight"] += 2 * b @ a
    return found


def check(out: Path, place: Path, tolerance: float = 1e-6) -> None:
    found = read_weights(out)
    exact = wanted(place)
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        torch.testing.assert_close(found[name].double(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shards", [1, 3])
def test_files_keep_their_names_and_untouched_tensors_their_bytes(shards: int, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tensors(), shards)
    out = run(recipe_for(tmp_path), tmp_path / "out").path
    check(out, tmp_path)
    assert {path.name for path in base.iterdir()} <= {path.name for path in out.iterdir()}
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.norm.weight"):
        assert torch.equal(read_weights(out)[name], tensors()[name])
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~0o022
    if shards > 1:
        mine, theirs = (json.loads((place / "model.safetensors.index.json").read_text()) for place in (out, base))
        assert mine == {"metadata": theirs["metadata"], "weight_map": dict(sorted(theirs["weight_map"].items()))}
    assert not (out / ".rmkit-journal").exists()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_bases_become_safetensors(sharded: bool, zipped: bool, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tensors())
    (base / "model.safetensors").unlink()
    names = list(tensors())
    halves = [names[:4], names[4:]] if sharded else [names]
    mapping: dict[str, str] = {}
    for i, half in enumerate(halves):
        file = f"pytorch_model-{i + 1:05d}-of-00002.bin" if sharded else "pytorch_model.bin"
        torch.save({name: tensors()[name] for name in half}, base / file, _use_new_zipfile_serialization=zipped)
        mapping |= dict.fromkeys(half, file)
    if sharded:
        (base / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": mapping}))
    out = run(recipe_for(tmp_path), tmp_path / "out").path
    check(out, tmp_path)
    assert not list(out.glob("*.bin*"))
    assert {path.name for path in out.glob("*.safetensors")} == (
        {f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)} if sharded else {"model.safetensors"}
    )
    assert (out / "model.safetensors.index.json").exists() == sharded


def test_tensors_that_a_pickle_shares_are_written_each(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tensors())
    (base / "model.safetensors").unlink()
    shared = tensors()
    shared["lm_head.weight"] = shared["model.embed_tokens.weight"]
    torch.save(shared, base / "pytorch_model.bin")
    found = read_weights(run(recipe_for(tmp_path), tmp_path / "out").path)
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_output_dtype_casts_everything_and_the_configuration_says_so(dtype: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base", tensors(dtype=torch.bfloat16), 2, torch_dtype="bfloat16", text_config={"dtype": "bfloat16"})
    out = run(recipe_for(tmp_path, dtype=dtype), tmp_path / "out").path
    assert {value.dtype for value in read_weights(out).values()} == {getattr(torch, dtype)}
    config = json.loads((out / "config.json").read_text())
    assert (config["torch_dtype"], config["text_config"]["dtype"]) == (dtype, dtype)


def test_a_value_the_dtype_cannot_hold(tmp_path: Path) -> None:
    weights = tensors()
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1e6
    write_base(tmp_path / "base", weights)
    from robustmerge_kit.errors import PlanError

    with pytest.raises(PlanError, match=r"lm_head.weight .* does not fit into float16"):
        run(recipe_for(tmp_path, dtype="float16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (900, 6)])
def test_the_shard_size_can_be_chosen(limit: int, files: int, tmp_path: Path) -> None:
    write_base(tmp_path / "base", tensors(), 3)
    out = run(recipe_for(tmp_path), tmp_path / "out", layout=Layout(shard_size=limit)).path
    check(out, tmp_path)
    paths = sorted(out.glob("*.safetensors"))
    assert len(paths) == files
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in paths}
    for path in paths:
        sizes = [value.nbytes for value in load_file(path).values()]
        assert sum(sizes) <= limit or len(sizes) == 1


def test_what_belongs_to_the_model_is_copied_and_nothing_else(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tensors())
    kept = [
        "tokenizer.model",
        "chat_template.jinja",
        "preprocessor_config.json",
        "modeling_own.py",
        "LICENSE",
        "sub/pooling.json",
    ]
    left = ["README.md", ".gitattributes", "model.gguf", "original/params.json", "optimizer.pt", "flax_model.msgpack"]
    for name in [*kept, *left]:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    secret = tmp_path / "secret.txt"
    secret.write_text("token")
    (base / "notes.txt").symlink_to(secret)
    receipt = run(recipe_for(tmp_path), tmp_path / "out")
    out = receipt.path
    for name in kept:
        assert (out / name).read_text() == name
    assert not [name for name in left if name != "README.md" and (out / name).exists()]
    assert "rmkit" in (out / "README.md").read_text()
    assert not (out / "notes.txt").exists()
    assert any("notes.txt leads outside" in note for note in receipt.content["notes"])
    without = run(recipe_for(tmp_path), tmp_path / "bare", layout=Layout(tokenizer=False)).path
    assert not [name for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja") if (without / name).exists()]
    assert (without / "config.json").exists()


def test_the_number_of_workers_and_the_budget_change_no_byte(tmp_path: Path) -> None:
    write_base(tmp_path / "base", tensors(4, torch.bfloat16), 3)
    adapters = write_adapters(tmp_path, 3, where=sites(4))
    recipe = write_recipe(
        tmp_path, adapters, "dare_ties", parameters={"density": 0.5}, base_model="base", output={"kind": "model"}
    )
    first = all_bytes(run(recipe, tmp_path / "o1", Resources(workers=1)).path)
    assert all_bytes(run(recipe, tmp_path / "o2", Resources(workers=4, memory=1 << 20)).path) == first


def test_a_unet_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    import peft

    def build() -> Any:
        torch.manual_seed(3)
        return diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=12,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval()

    build().save_pretrained(tmp_path / "base")
    model: Any = peft.get_peft_model(build(), peft.LoraConfig(r=4, target_modules=["to_q", "to_v", "conv1", "proj_in"]))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn(value.shape))
    model.save_pretrained(tmp_path / "a")
    out = run(write_recipe(tmp_path, [tmp_path / "a"], base_model="base", output={"kind": "model"}), tmp_path / "out").path
    folded = diffusers.UNet2DConditionModel.from_pretrained(out).eval()
    sample, state = torch.linspace(-1, 1, 2 * 4 * 64).reshape(2, 4, 8, 8), torch.linspace(-1, 1, 2 * 3 * 12).reshape(2, 3, 12)
    with torch.no_grad():
        found, right = (m(sample, 5, encoder_hidden_states=state).sample for m in (folded, model))
        plain = build()(sample, 5, encoder_hidden_states=state).sample
    torch.testing.assert_close(found, right, rtol=0, atol=1e-5)
    assert (plain - right).abs().max() > 1e-3


def test_a_pipeline_keeps_its_components_apart(tmp_path: Path) -> None:
    base = tmp_path / "base"
    for component, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (base / component).mkdir(parents=True)
        save_file({"block.to_q.weight": torch.ones(6, 5)}, base / component / f"{stem}.safetensors", {"format": "pt"})
        (base / component / "config.json").write_text("{}")
    (base / "model_index.json").write_text("{}")
    (base / "scheduler").mkdir()
    (base / "scheduler" / "scheduler_config.json").write_text("{}")
    write_adapter(tmp_path / "a", where={"unet.block.to_q": (6, 5)})
    out = run(write_recipe(tmp_path, [tmp_path / "a"], base_model="base", output={"kind": "model"}), tmp_path / "out").path
    assert (out / "scheduler" / "scheduler_config.json").exists()
    untouched = load_file(out / "text_encoder" / "model.safetensors")["block.to_q.weight"]
    assert torch.equal(untouched, torch.ones(6, 5))
    assert not torch.equal(load_file(out / "unet" / "diffusion_pytorch_model.safetensors")["block.to_q.weight"], untouched)


BROKEN = {
    "tensor not in its shard": ("lacks 1 tensors that the index places there, the first: ghost", {"ghost": 0}, {}),
    "tensor twice": (
        "is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors",
        {},
        {"lm_head.weight": 0},
    ),
    "climbing shard": (r"names a shard outside of its folder: '\.\./model", {"x": "../model.safetensors"}, {}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_indexes(name: str, tmp_path: Path) -> None:
    message, entries, doubled = BROKEN[name]
    base = write_base(tmp_path / "base", tensors(), 2)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"] |= {k: files[v] if isinstance(v, int) else v for k, v in entries.items()}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    for tensor, shard in doubled.items():
        stored = load_file(base / files[shard])
        save_file({**stored, tensor: tensors()[tensor]}, base / files[shard])
    with pytest.raises(InputError, match=message):
        run(recipe_for(tmp_path), tmp_path / "out")


def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    held: list[int] = []
    for layers in (4, 16):
        place = tmp_path / str(layers)
        shapes = {"up_proj": (256, 256)}
        where = sites(layers, shapes)
        weights = {f"{site}.weight": torch.zeros(256, 256) for site in where}
        write_base(place / "base", weights)
        adapters = write_adapters(place, 2, where=where)
        recipe = write_recipe(place, adapters, base_model="base", output={"kind": "model"})
        receipt = run(recipe, place / "out", Resources(workers=2, memory=60 << 20))
        held.append(receipt.content["memory"]["peak_in_flight"])
    assert held[0] == held[1] <= 60 << 20


def test_several_devices_share_the_work_and_change_no_byte(tmp_path: Path) -> None:
    write_base(tmp_path / "base", tensors(), 2)
    recipe = recipe_for(tmp_path)
    alone = all_bytes(run(recipe, tmp_path / "o1").path)
    assert all_bytes(run(recipe, tmp_path / "o2", Resources(workers=4, others=("cpu", "cpu"))).path) == alone


@pytest.mark.parametrize("wanted", ["cpu,cpu", "cuda:0,cuda:0", "cpu,cuda:0"])
def test_devices_that_make_no_sense_together(wanted: str) -> None:
    from robustmerge_kit.errors import UsageError
    from robustmerge_kit.resources import pick_devices

    with pytest.raises(UsageError, match="--device"):
        pick_devices(wanted)

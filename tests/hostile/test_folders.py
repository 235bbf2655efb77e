"""Folders, repositories and references from strangers: nothing outside of them is read, copied or shown."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_adapters import run, write_adapter, write_recipe

from robustmerge_kit.adapters import read_adapter
from robustmerge_kit.checkpoint import open_checkpoint
from robustmerge_kit.errors import InputError, RmkitError
from robustmerge_kit.links import as_path
from robustmerge_kit.publish import pack
from robustmerge_kit.sources import Source, resolve

SECRET = "the-victims-secret"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder that no adapter has any business in."""
    place = tmp_path / "victim"
    write_adapter(place / "private", seed=9)
    (place / "token").write_text(SECRET)
    (place / "settings.json").write_text(json.dumps({"model_type": "llava_llama", "key": SECRET}))
    return place


def relink(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def read(folder: Path, **options: object) -> object:
    return read_adapter(Source(str(folder), folder), label="x", **options)  # pyright: ignore[reportArgumentType]


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "the weights": lambda ours, theirs: relink(
        ours / "adapter_model.safetensors", theirs / "private" / "adapter_model.safetensors"
    ),
    "the configuration": lambda ours, theirs: relink(ours / "adapter_config.json", theirs / "token"),
    "the model's configuration": lambda ours, theirs: relink(ours / "config.json", theirs / "settings.json"),
    "the card": lambda ours, theirs: relink(ours / "README.md", theirs / "token"),
    "by way of a link inside": lambda ours, theirs: (
        relink(ours / "inner", theirs),
        relink(ours / "config.json", Path("inner/settings.json")),
    )[0],
    "relative": lambda ours, theirs: relink(ours / "adapter_config.json", Path("../victim/token")),
}


@pytest.mark.parametrize("plant", LINKS.values(), ids=LINKS.keys())
def test_links_out_of_the_folder_are_refused(plant: Callable[[Path, Path], None], tmp_path: Path, victim: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    plant(folder, victim)
    with pytest.raises(InputError, match="a link that leads outside of its folder") as caught:
        read(folder)
    assert SECRET not in str(caught.value)


def test_a_sub_folder_that_is_a_link_is_refused(tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "one").symlink_to(victim / "private")
    with pytest.raises(InputError, match="a link that leads outside"):
        resolve("many:one", tmp_path)
    with pytest.raises(InputError, match="a link that leads outside"):
        read(folder)


def test_the_recipe_may_allow_links_and_the_user_may_name_one(tmp_path: Path, victim: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    LINKS["the weights"](folder, victim)
    assert read(folder, allow=("links",))
    link = tmp_path / "named"
    link.symlink_to(victim / "private")
    assert resolve("named", tmp_path).folder == link
    assert read(link)
    recipe = write_recipe(tmp_path, [folder, link], allow=["links"])
    run(recipe, tmp_path / "out")


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    store = tmp_path / "hub" / "models--org--name"
    snapshot = write_adapter(store / "snapshots" / ("a" * 40))
    blobs = store / "blobs"
    blobs.mkdir()
    for i, path in enumerate(sorted(snapshot.iterdir())):
        blob = blobs / (f"{i}" * 40)
        path.rename(blob)
        path.symlink_to(Path("../../blobs") / blob.name)
    assert read(snapshot)
    local = tmp_path / "downloaded"  # as huggingface_hub made local folders before it copied files
    local.mkdir()
    for path in snapshot.iterdir():
        (local / path.name).symlink_to(path.resolve())
    assert read(local)


def test_a_stolen_configuration_is_not_copied_into_the_result(tmp_path: Path, victim: Path) -> None:
    folders = [write_adapter(tmp_path / f"a{i}", i) for i in range(2)]
    for folder in folders:
        relink(folder / "config.json", victim / "settings.json")
        torch.save({"model.mm_projector.0.weight": torch.zeros(2, 2)}, folder / "non_lora_trainables.bin")
    recipe = write_recipe(tmp_path, folders, output={"format": "llava"})
    with pytest.raises(RmkitError, match="leads outside"):
        run(recipe, tmp_path / "llava-lora-out")
    assert not (tmp_path / "llava-lora-out").exists()


def test_devices_pipes_and_circles_are_no_files(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    for target in ("/dev/zero", "/dev/stdin", "adapter_model.safetensors"):
        relink(weights, Path(target))
        with pytest.raises(InputError):
            read(folder)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(InputError):
        read(folder)


NOWHERE = [
    *("~no-such-user-here/x", "a" * 100_000, "a:" * 50_000, "a/" * 50_000),
    *("org/name@../../x", "org/name@/etc/hostname", "org/name:/etc"),
]


@pytest.mark.parametrize("reference", NOWHERE)
def test_references_that_lead_nowhere(reference: str, tmp_path: Path) -> None:
    before = time.process_time()
    with pytest.raises(InputError):
        resolve(reference, tmp_path)
    assert time.process_time() - before < 5
    assert as_path("~no-such-user-here/x") == Path("~no-such-user-here/x")


SHARDS = [
    "../x.safetensors",
    "/etc/hostname",
    "a/../../x.safetensors",
    "..",
    "",
    "a\\..\\x",
    "x\0y",
    "sub/x.safetensors",
    7,
    None,
]


@pytest.mark.parametrize("shard", SHARDS)
def test_an_index_names_only_files_beside_it(shard: object, tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (tmp_path / "x.safetensors").write_bytes((victim / "private" / "adapter_model.safetensors").read_bytes())
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError):
        open_checkpoint(Source("base", folder))


@pytest.mark.parametrize("name", ["README.md", "rmkit.json", "rmkit_recipe.yaml"])
def test_a_push_takes_no_file_from_elsewhere(name: str, tmp_path: Path, victim: Path) -> None:
    out = tmp_path / "out"
    run(write_recipe(tmp_path, [write_adapter(tmp_path / f"a{i}", i) for i in range(2)]), out)
    relink(out / name, victim / "token")
    with pytest.raises(InputError, match="leads outside of its folder"):
        pack(out)

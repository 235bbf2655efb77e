"""What a conversion refuses, before it writes anything; what it leaves behind when it fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trips import TEXT, UNET, bits, factors, peft, read, to, write_names

from robustmerge_kit.errors import InputError, OutputError, PlanError, RmkitError, UsageError

PLAIN = {"proj": (6, 6)}
HEAD = {"classifier.weight": torch.ones(2, 6)}

Make = Callable[[Path], dict[str, Any]]


def kohya(place: Path) -> Path:
    to(peft(place / "a", UNET), place / "k", "kohya")
    return place / "k"


def numbered(place: Path) -> Path:
    a, b = factors((6, 5), 2, 0, torch.float32)
    save_file({"w_a_000": a, "w_b_000": b}, place / "numbered.safetensors")
    return place / "numbered.safetensors"


def embedding(place: Path) -> Path:
    tensors = {
        "base_model.model.emb.lora_embedding_A": torch.ones(2, 9),
        "base_model.model.emb.lora_embedding_B": torch.ones(4, 2),
    }
    peft(place / "e", PLAIN)
    save_file(tensors, place / "e" / "adapter_model.safetensors")
    return place / "e"


def mlx(place: Path) -> Path:
    (place / "mlx").mkdir()
    save_file({"x.lora_a": torch.ones(3, 2), "x.lora_b": torch.ones(2, 4)}, place / "mlx" / "adapters.safetensors")
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 2.0}}
    (place / "mlx" / "adapter_config.json").write_text(json.dumps(settings))
    return place / "mlx"


def llava_of_gpt2(place: Path) -> Path:
    (place / "base").mkdir()
    (place / "base" / "config.json").write_text('{"model_type": "gpt2"}')
    return place / "base"


CASES: dict[str, tuple[type[RmkitError], str, Make]] = {
    "kohya to PEFT without names": (
        PlanError,
        r"a kohya LoRA cannot be written as peft: underscored names cannot be turned back .*\nhint: give --base FOLDER",
        lambda at: {"source": kohya(at)},
    ),
    "kohya to diffusers without names": (
        PlanError,
        "a kohya LoRA cannot be written as diffusers",
        lambda at: {"source": kohya(at), "layout": "diffusers"},
    ),
    "numbered pairs to PEFT without names": (
        PlanError,
        r"numbered LoRA cannot be written as peft: the file does not name its modules\nhint: give --names FILE",
        lambda at: {"source": numbered(at)},
    ),
    "numbered pairs with too many names": (
        InputError,
        "names: holds 2 names for 1 pairs",
        lambda at: {"source": numbered(at), "names": write_names(at / "names", ["a", "b"])},
    ),
    "names of another model": (
        InputError,
        r"4 of 4 modules are not there \(first lora_unet_down_blocks_0.*names there are like text_model_encoder",
        lambda at: {"source": kohya(at), "names": write_names(at / "names", list(TEXT))},
    ),
    "names that flatten alike": (
        InputError,
        r"lora_unet_mid_block_attentions_0_proj_in can be mid_block.attentions.0.proj.in or mid_block.attentions.0.proj_in",
        lambda at: {"source": kohya(at), "names": write_names(at / "names", [*UNET, "mid_block.attentions.0.proj.in"])},
    ),
    "an empty list of names": (
        InputError,
        "holds no names",
        lambda at: {"source": kohya(at), "names": write_names(at / "names", [])},
    ),
    "prose for names": (
        InputError,
        "'not a name' is not a module name",
        lambda at: {"source": kohya(at), "names": write_names(at / "names", ["not a name"])},
    ),
    "a missing list of names": (
        InputError,
        "gone: cannot be read: No such file",
        lambda at: {"source": kohya(at), "names": at / "gone"},
    ),
    "a missing base": (InputError, "gone: no such file or folder", lambda at: {"source": kohya(at), "base": at / "gone"}),
    "an adapter for a base": (
        InputError,
        "is an adapter, not a base model",
        lambda at: {"source": kohya(at), "base": peft(at / "b", UNET)},
    ),
    "MLX written": (InputError, "MLX adapters are read, not written", lambda at: {"source": mlx(at), "layout": "same"}),
    "MLX to kohya without a component": (
        PlanError,
        r"modules like x: nothing says what kohya calls this model\nhint: give --component",
        lambda at: {"source": mlx(at), "layout": "kohya"},
    ),
    "embeddings in kohya": (
        PlanError,
        "kohya's layout: no place for factors of embeddings or experts; 1 modules, the first: emb",
        lambda at: {"source": embedding(at), "layout": "kohya", "component": "unet"},
    ),
    "embeddings in diffusers": (
        PlanError,
        "diffusers' layout: no place for factors of embeddings",
        lambda at: {"source": embedding(at), "layout": "diffusers", "component": "unet"},
    ),
    "a head in kohya": (
        PlanError,
        r"no place for tensors that are no LoRA factors: classifier.weight\nhint: --drop-extras",
        lambda at: {"source": peft(at / "h", PLAIN, extras=HEAD), "layout": "kohya", "component": "unet"},
    ),
    "a bias in LLaVA": (
        PlanError,
        "LLaVA's layout has no place for tensors that are no LoRA factors: proj.bias",
        lambda at: {
            "source": peft(at / "h", PLAIN, extras={"proj.base_layer.bias": torch.ones(6)}, bias="lora_only"),
            "layout": "llava",
            "out": at / "llava-lora",
        },
    ),
    "names that become one in kohya": (
        PlanError,
        "a.b_c and a_b.c would both be called lora_unet_a_b_c",
        lambda at: {
            "source": peft(at / "h", {"a.b_c": (6, 6), "a_b.c": (6, 6)}),
            "layout": "kohya",
            "component": "unet",
        },
    ),
    "an unknown component": (
        PlanError,
        "component 'brain': nothing says what kohya calls this model",
        lambda at: {"source": peft(at / "h", PLAIN), "layout": "kohya", "component": "brain"},
    ),
    "LLaVA by another name": (
        PlanError,
        "lacks 'llava' or 'lora'",
        lambda at: {"source": peft(at / "h", PLAIN), "layout": "llava"},
    ),
    "LLaVA without config.json": (
        PlanError,
        r"needs the config.json of its model.*\nhint: give --base",
        lambda at: {"source": peft(at / "h", PLAIN), "layout": "llava", "out": at / "llava-lora"},
    ),
    "LLaVA of another model": (
        InputError,
        "model_type is 'gpt2', which the official LLaVA code does not load",
        lambda at: {
            "source": peft(at / "h", PLAIN),
            "layout": "llava",
            "out": at / "llava-lora",
            "base": llava_of_gpt2(at),
        },
    ),
    "kohya as a pickle": (
        UsageError,
        "kohya files are safetensors",
        lambda at: {"source": peft(at / "h", PLAIN), "layout": "kohya", "component": "unet", "weights": "bin"},
    ),
    "alpha on a copy": (
        UsageError,
        "--alpha 3: --to same copies",
        lambda at: {"source": kohya(at), "layout": "same", "alpha": 3.0},
    ),
    "a prefix that is none": (
        UsageError,
        "--prefix unet: it is kohya's prefix",
        lambda at: {"source": peft(at / "h", PLAIN), "layout": "kohya", "prefix": "unet"},
    ),
    "one scale for kohya": (
        UsageError,
        "--uniform: kohya files hold a scale for each module",
        lambda at: {"source": peft(at / "h", PLAIN), "layout": "kohya", "uniform": True},
    ),
    "OUT is a file": (
        UsageError,
        r"OUT is a folder, and lora.safetensors is named like a file\nhint: name it lora",
        lambda at: {"source": peft(at / "h", PLAIN), "out": at / "lora.safetensors"},
    ),
    "OUT inside the adapter": (
        OutputError,
        "lie inside each other",
        lambda at: {"source": peft(at / "h", PLAIN), "out": at / "h" / "out"},
    ),
    "OUT is there": (
        OutputError,
        "exists already",
        lambda at: {"source": peft(at / "h", PLAIN), "out": peft(at / "out", PLAIN)},
    ),
    "no adapter of that name": (
        InputError,
        "not 'math'",
        lambda at: {"source": peft(at / "h", PLAIN), "adapter_name": "math"},
    ),
    "an init that PEFT alone can carry": (
        InputError,
        "trained on a modified base",
        lambda at: {
            "source": peft(at / "h", UNET, init_lora_weights="pissa"),
            "layout": "kohya",
        },
    ),
}


@pytest.mark.parametrize("kind", CASES, ids=str)
def test_refused(tmp_path: Path, kind: str) -> None:
    error, message, make = CASES[kind]
    given = make(tmp_path)
    out = given.pop("out", tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        to(given.pop("source"), out, **given)
    assert sorted(tmp_path.rglob("*")) == before


def test_nan_leaves_nothing_behind(tmp_path: Path) -> None:
    source = peft(tmp_path / "a", PLAIN, dtype=torch.float32)
    tensors = load_file(source / "adapter_model.safetensors")
    tensors["base_model.model.proj.lora_B.weight"][0, 0] = float("nan")
    save_file(tensors, source / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"proj.lora_B.weight: holds NaN/Inf \(1 values\)"):
        to(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_extras_are_dropped_by_the_users_word_alone_and_named(tmp_path: Path) -> None:
    source = peft(tmp_path / "h", PLAIN, extras=HEAD, modules_to_save=["classifier"])
    receipt = to(source, tmp_path / "out", "kohya", component="unet", drop_extras=True)
    assert receipt.content["dropped"] == ["classifier.weight"]
    to(source, tmp_path / "peft", drop_extras=True)
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["modules_to_save"] is None
    assert read(tmp_path / "peft").extras == {}


def test_a_modified_init_is_carried_by_peft(tmp_path: Path) -> None:
    source = peft(tmp_path / "h", PLAIN, init_lora_weights="pissa", file="adapter_model.bin")
    to(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["init_lora_weights"] == "pissa"
    how = {"allow": ("modified_init",)}
    assert bits(read(tmp_path / "out", **how)) == bits(read(source, **how))


def test_an_existing_folder_is_replaced_on_demand(tmp_path: Path) -> None:
    from robustmerge_kit.convert import Wish, convert

    peft(tmp_path / "a", PLAIN)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    convert(str(tmp_path / "a"), tmp_path / "out", Wish(), overwrite=True)
    assert not (tmp_path / "out" / "old").exists()

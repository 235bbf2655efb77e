"""LLaVA's own layout, numbered pairs, kohya, diffusers, MLX; foreign ones refused by name; values and imports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import CONFIG, folder, pair

from robustmerge_kit.adapters import Adapter, read_adapter
from robustmerge_kit.adapters.check import check_values
from robustmerge_kit.errors import InputError
from robustmerge_kit.sources import resolve

A, B = torch.randn(2, 3), torch.randn(4, 2)


def read(place: Path, reference: str = ".", **how: Any) -> Adapter:
    return read_adapter(resolve(reference, place), label="it", **how)


def delta(adapter: Adapter, site: str) -> torch.Tensor:
    a, b = adapter.sites[site].read()
    return adapter.sites[site].scale * b @ a


def named(a: str, b: str) -> dict[str, torch.Tensor]:
    return {a: A, b: B}


# --- LLaVA's own layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "base_model.model.", "model.model.", "model.", ""])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_llava(tmp_path: Path, prefix: str, file: str) -> None:
    folder(tmp_path, pair("model.layers.0.self_attn.q_proj"), file=file)
    projector = {f"{prefix}mm_projector.{i}.{leaf}": torch.full((2,), float(i)) for i in (0, 2) for leaf in ("weight", "bias")}
    torch.save(projector, tmp_path / "non_lora_trainables.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    adapter = read(tmp_path)
    assert adapter.layout == "llava"
    assert sorted(adapter.extras) == [f"model.mm_projector.{i}.{leaf}" for i in (0, 2) for leaf in ("bias", "weight")]
    assert adapter.extras["model.mm_projector.2.bias"].ref.read().tolist() == [2, 2]
    assert {path.name for path in adapter.files} == {"adapter_config.json", file, "config.json", "non_lora_trainables.bin"}


def test_llava_without_a_projector(tmp_path: Path) -> None:
    folder(tmp_path, pair("model.layers.0.self_attn.q_proj"))
    torch.save({}, tmp_path / "non_lora_trainables.bin")
    assert read(tmp_path).layout == "llava"
    (tmp_path / "non_lora_trainables.bin").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    assert read(tmp_path).notes == ("non_lora_trainables.bin is absent: no projector was trained or saved",)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert read(tmp_path).layout == "peft"


# --- layouts without PEFT's configuration -----------------------------------------------------------------------------


def loose(place: Path, tensors: dict[str, torch.Tensor], **how: Any) -> Path:
    return folder(place, tensors, {}, file=how.pop("file", "lora.safetensors"), **how)


def test_numbered_pairs(tmp_path: Path) -> None:
    loose(tmp_path, {"w_a_000": A, "w_b_000": B, "w_a_001": A, "w_b_001": B, "mask.weight": torch.ones(2)})
    adapter = read(tmp_path)
    assert (adapter.layout, list(adapter.sites), list(adapter.extras)) == ("numbered", ["000", "001"], ["mask.weight"])
    torch.testing.assert_close(delta(adapter, "001"), B @ A)
    assert read(tmp_path, alpha=8).sites["000"].scale == 4


@pytest.mark.parametrize(("alpha", "scale"), [(1.0, 0.5), (0.0, 1.0), (None, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kohya(tmp_path: Path, alpha: float | None, scale: float, dtype: torch.dtype) -> None:
    s = "lora_unet_down_blocks_0_attn"
    tensors = {f"{s}.lora_down.weight": A, f"{s}.lora_up.weight": B, "lora_te1_x.lora_down.weight": torch.ones(2, 3, 3, 3)}
    tensors |= {"lora_te1_x.lora_up.weight": torch.ones(5, 2, 1, 1)}
    if alpha is not None:
        tensors[f"{s}.alpha"] = torch.tensor(alpha, dtype=dtype)
    loose(tmp_path, tensors)
    adapter = read(tmp_path)
    assert adapter.layout == "kohya"
    assert adapter.sites[s].scale == scale
    assert adapter.sites["lora_te1_x"].kernel == (3, 3, 3)
    assert "have no alpha" in adapter.notes[0]


DIFFUSERS = {
    "2023": ("unet.mid.attn1.to_k.lora.down.weight", "unet.mid.attn1.to_k.lora.up.weight", "unet.mid.attn1.to_k"),
    "text encoder": (
        "text_encoder.q.lora_linear_layer.down.weight",
        "text_encoder.q.lora_linear_layer.up.weight",
        "text_encoder.q",
    ),
    "processors": ("mid.attn1.processor.to_k_lora.down.weight", "mid.attn1.processor.to_k_lora.up.weight", "mid.attn1.to_k"),
}


@pytest.mark.parametrize(("a", "b", "site"), DIFFUSERS.values(), ids=DIFFUSERS.keys())
def test_old_diffusers(tmp_path: Path, a: str, b: str, site: str) -> None:
    loose(tmp_path, named(a, b), file="pytorch_lora_weights.safetensors")
    adapter = read(tmp_path)
    assert adapter.layout == "diffusers"
    torch.testing.assert_close(delta(adapter, site), B @ A)
    assert read(tmp_path, alpha=8).sites[site].scale == 4


def test_current_diffusers(tmp_path: Path) -> None:
    tensors = {**pair("x.to_k", prefix="unet."), **pair("y.q", prefix="text_encoder.")}
    loose(tmp_path, tensors)
    with pytest.raises(InputError, match="no lora_adapter_metadata in its header"):
        read(tmp_path)
    assert read(tmp_path, alpha=2).sites["unet.x.to_k"].scale == 1
    flat = {
        "unet.r": 2,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {"to_k": 6},
        "text_encoder.r": 2,
        "text_encoder.lora_alpha": 4,
    }
    loose(tmp_path, tensors, metadata={"lora_adapter_metadata": json.dumps(flat)})
    adapter = read(tmp_path)
    assert {name: site.scale for name, site in adapter.sites.items()} == {"unet.x.to_k": 3, "text_encoder.y.q": 2}
    loose(tmp_path, tensors, metadata={"lora_adapter_metadata": json.dumps({**flat, "unet.use_dora": True})})
    with pytest.raises(InputError, match="DoRA"):
        read(tmp_path)
    loose(tmp_path, tensors, metadata={"lora_adapter_metadata": "{"})
    with pytest.raises(InputError, match="is not JSON"):
        read(tmp_path)


def test_mixed_ranks_without_alpha(tmp_path: Path) -> None:
    other = {"unet.b.to_k.lora.down.weight": torch.ones(1, 3), "unet.b.to_k.lora.up.weight": torch.ones(4, 1)}
    loose(tmp_path, {**named("unet.a.to_k.lora.down.weight", "unet.a.to_k.lora.up.weight"), **other})
    adapter = read(tmp_path)
    assert {site.scale for site in adapter.sites.values()} == {1}
    assert adapter.notes == ("ranks differ ([1, 2]) and no alpha is stored; every module is read with scale 1",)


MLX = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 2, "scale": 20.0}, "model": "mlx-community/tiny"}


def test_mlx(tmp_path: Path) -> None:
    tensors = {
        "m.q.lora_a": A.T,
        "m.q.lora_b": B.T,
        "m.embed_tokens.lora_a": torch.ones(9, 2),
        "m.embed_tokens.lora_b": torch.ones(2, 4),
    }
    folder(tmp_path, tensors, MLX, file="adapters.safetensors")
    adapter = read(tmp_path)
    assert (adapter.layout, adapter.base) == ("mlx", "mlx-community/tiny")
    torch.testing.assert_close(delta(adapter, "m.q"), 20 * B @ A)
    embed = adapter.sites["m.embed_tokens"]
    assert (embed.kind, embed.rank, embed.d_in, embed.d_out) == ("embedding", 2, 9, 4)


def mlx(changes: dict[str, Any], **tensors: torch.Tensor) -> Any:
    names = {"m.q.lora_a": A.T, "m.q.lora_b": B.T} | {f"m.q.{leaf}": value for leaf, value in tensors.items()}
    return lambda place: folder(place, names, {**MLX, **changes}, file="adapters.safetensors")


def bare(tensors: dict[str, torch.Tensor], file: str = "lora.safetensors") -> Any:
    return lambda place: loose(place, tensors, file=file)


def a_list(place: Path) -> None:
    torch.save([A, B], place / "lora.pt")


FOREIGN = {
    "mlx dora": (mlx({"fine_tune_type": "dora"}), "DoRA"),
    "mlx magnitudes": (mlx({}, m=torch.ones(4)), "DoRA"),
    "mlx full": (mlx({"fine_tune_type": "full"}), "fine_tune_type is 'full'"),
    "mlx quantised": (mlx({}, lora_a_scales=torch.ones(4)), "quantised factors"),
    "mlx without scale": (mlx({"lora_parameters": {"rank": 2}}), "lora_parameters.scale is missing"),
    "mlx without configuration": (bare({"m.q.lora_a": A.T, "m.q.lora_b": B.T}), "without its adapter_config.json"),
    "kohya variant": (bare({"lora_unet_unet_x_to_k_lora_down.weight": A}), "kohya-looking variant"),
    "loha": (bare({"lora_unet_x.hada_w1_a": A}), "LoHa"),
    "lokr": (bare({"lora_unet_x.lokr_w1": A}), "LoKr"),
    "kohya dora": (bare({"lora_unet_x.lora_down.weight": A, "lora_unet_x.dora_scale": A}), "DoRA"),
    "kohya half": (bare({"lora_unet_x.lora_down.weight": A}), "lora_down but no lora_up"),
    "kohya stray alpha": (bare({"lora_unet_x.alpha": torch.tensor(1.0)}), "alpha but no factors"),
    "cloneofsimo": (bare({"unet:0:up": B, "unet:0:down": A}), "numbered diffusion LoRA of 2022/23"),
    "cloneofsimo list": (a_list, "holds a list"),
    "nemo experts": (bare({"m.experts.lora_gate_and_up_A": A}), "NeMo"),
    "peft without configuration": (bare(pair("q")), "adapter_config.json is missing, so the scale is not known"),
    "diffusers dora": (
        bare({**named("unet.q.lora.down.weight", "unet.q.lora.up.weight"), "unet.q.lora_magnitude_vector": A}),
        "DoRA",
    ),
    "diffusers with more": (
        bare({**named("unet.q.lora.down.weight", "unet.q.lora.up.weight"), "unet.conv.weight": A}),
        "unexpected key",
    ),
    "unknown": (bare({f"layer{i}.weight": A for i in range(7)}), "unknown layout; keys are e.g. layer0.weight.*layer4.weight$"),
}


@pytest.mark.parametrize(("make", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_layouts_are_refused_by_name(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    import re

    assert re.search(message, f"{caught.value.where}: {caught.value.what}"), caught.value
    assert caught.value.hint or "alpha" in message


def test_peft_keys_without_configuration_need_alpha(tmp_path: Path) -> None:
    loose(tmp_path, pair("q"))
    adapter = read(tmp_path, alpha=4)
    assert adapter.sites["q"].scale == 2
    assert "adapter_config.json is missing" in adapter.notes


def test_configuration_without_peft_type(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "peft_type"}
    folder(tmp_path, pair("q"), config)
    assert read(tmp_path).notes == ("adapter_config.json has no peft_type; the keys are those of LoRA",)


# --- values and imports -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values(dtype: torch.dtype) -> None:
    good = torch.ones(3, 4, dtype=dtype)
    check_values("here", good)
    check_values("here", good[:0])
    check_values("here", torch.ones(2, dtype=torch.int64))
    for bad in (float("nan"), float("inf"), float("-inf")):
        broken = good.clone()
        broken[0, 0] = broken[2, 3] = bad
        with pytest.raises(InputError, match=r"here: holds NaN/Inf \(2 values\)"):
            check_values("here", broken)


def test_safetensors_adapters_need_no_torch(tmp_path: Path) -> None:
    folder(tmp_path, pair("q"))
    kohya = loose(
        tmp_path / "k", {"lora_te_x.lora_down.weight": A, "lora_te_x.lora_up.weight": B, "lora_te_x.alpha": torch.tensor(1.0)}
    )
    code = (
        "import sys; from pathlib import Path\n"
        "from robustmerge_kit.adapters import align, read_adapter; from robustmerge_kit.sources import resolve\n"
        f"one = [read_adapter(resolve(p, Path.cwd()), label=p) for p in ({str(tmp_path)!r}, {str(kohya)!r})]\n"
        "align(one[:1]); assert one[1].sites['lora_te_x'].scale == 0.5\n"
        "loaded = {'torch', 'numpy', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

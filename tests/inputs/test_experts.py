"""Fused experts: which parameter, how many experts, which axes, which columns; read from files and from PEFT's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import folder
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from robustmerge_kit.adapters import Adapter, align, pack, read_adapter
from robustmerge_kit.errors import InputError
from robustmerge_kit.sources import resolve

E, R = 3, 2
X = "base_model.model.m.experts"


def read(place: Path, **how: Any) -> Adapter:
    return read_adapter(resolve(str(place), place), label=place.name, **how)


def fused(d_in: int = 4, d_out: int = 5, module: str = X, columns: Any = "peft", seed: int = 0) -> dict[str, Tensor]:
    """The factors of one parameter as they lie in a file."""
    draw = torch.Generator().manual_seed(seed)
    a, b = pack(torch.randn(E, R, d_in, generator=draw), torch.randn(E, d_out, R, generator=draw), columns)
    return {f"{module}.lora_A.weight": a.clone(), f"{module}.lora_B.weight": b.clone()}


def gate_and_down(wide: int = 4, hidden: int = 3) -> dict[str, Tensor]:
    return fused(wide, 2 * hidden, f"{X}.base_layer") | fused(hidden, wide, seed=1)


def loop_deltas(tensors: dict[str, Tensor], module: str, columns: str, scale: float) -> list[Tensor]:
    """One delta per expert by the definition of the columns, entry by entry of the rank."""
    a, b = tensors[f"{module}.lora_A.weight"].double(), tensors[f"{module}.lora_B.weight"].double()
    found: list[Tensor] = []
    for e in range(E):
        delta = torch.zeros(b.shape[0], a.shape[1], dtype=torch.float64)
        for k in range(R):
            column = k * E + e if columns == "peft" else e * R + k
            delta += scale * torch.outer(b[:, column], a[e * R + k])
        found.append(delta)
    return found


@pytest.mark.parametrize("columns", ["peft", "unsloth"])
def test_columns(tmp_path: Path, columns: Any) -> None:
    tensors = fused(columns=columns)
    folder(tmp_path, tensors, target_parameters=["experts.w"])
    site = read(tmp_path, expert_layout=columns).sites["m.experts.w"]
    assert (site.kind, site.experts, site.rank, site.d_in, site.d_out, site.kernel) == ("experts", E, R, 4, 5, (4,))
    assert site.scale == 2
    assert site.nbytes == sum(value.nbytes for value in tensors.values())
    a, b = site.read()
    torch.testing.assert_close(2 * b.double() @ a.double(), torch.stack(loop_deltas(tensors, X, columns, 2.0)))
    for stored, packed in zip(tensors.values(), pack(a, b, columns), strict=True):
        assert stored.equal(packed)


NAMES: dict[str, tuple[dict[str, Tensor], dict[str, Any], list[str]]] = {
    "one parameter": (fused(), {"target_parameters": ["experts.up_proj"]}, ["m.experts.up_proj"]),
    "its whole name": (fused(), {"target_parameters": ["m.experts.up_proj"]}, ["m.experts.up_proj"]),
    "its last name alone": (fused(), {"target_parameters": ["up_proj"]}, ["m.experts.up_proj"]),
    "what is registered first is inside": (
        gate_and_down(),
        {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"]},
        ["m.experts.gate_up_proj", "m.experts.down_proj"],
    ),
    "unless the shapes show the contrary": (
        fused(3, 4, f"{X}.base_layer", seed=1) | fused(4, 6),
        {"target_parameters": ["gate_up_proj", "down_proj"]},
        ["m.experts.down_proj", "m.experts.gate_up_proj"],
    ),
    "both axes turned": (
        fused(6, 4, f"{X}.base_layer") | fused(4, 3),
        {"target_parameters": ["gate_up_proj", "down_proj"]},
        ["m.experts.gate_up_proj", "m.experts.down_proj"],
    ),
    "three deep": (
        fused(4, 3, f"{X}.base_layer.base_layer") | fused(4, 3, f"{X}.base_layer") | fused(3, 4),
        {"target_parameters": ["w2", "v1", "w1"]},
        ["m.experts.w1", "m.experts.v1", "m.experts.w2"],
    ),
    "beside a plain module": (
        fused() | fused(module="base_model.model.m.q"),
        {"target_parameters": ["w"], "target_modules": ["q"]},
        ["m.experts.w", "m.q"],
    ),
    "beside a plain module of a pattern": (
        fused() | {f"base_model.model.m.q.lora_{x}.weight": torch.ones(s) for x, s in (("A", (R, 4)), ("B", (5, R)))},
        {"target_parameters": ["w"], "target_modules": ".*q"},
        ["m.experts.w", "m.q"],
    ),
    "the weight of a router": (
        {f"base_model.model.m.gate.lora_{x}.weight": torch.ones(s) for x, s in (("A", (R, 4)), ("B", (5, R)))},
        {"target_parameters": ["gate.weight"]},
        ["m.gate"],
    ),
    "the weights of parallel experts": (
        fused(module="base_model.model.m.input_linear"),
        {"target_parameters": ["input_linear.weight"]},
        ["m.input_linear.weight"],
    ),
}


@pytest.mark.parametrize(("tensors", "settings", "names"), NAMES.values(), ids=NAMES.keys())
def test_which_parameter(tmp_path: Path, tensors: dict[str, Tensor], settings: dict[str, Any], names: list[str]) -> None:
    folder(tmp_path, tensors, **settings)
    sites = read(tmp_path).sites
    assert sorted(sites) == sorted(names)
    stored = {f"base_model.model.{site.stored_module(name)}" for name, site in sites.items()}
    assert stored == {name.partition(".lora_")[0] for name in tensors}
    for name, site in sites.items():
        assert site.a.spec.name == f"base_model.model.{site.stored_module(name)}.lora_A.weight"


def test_rank_and_scale_come_from_the_parameter_s_own_pattern(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {".*gate_up_proj": 3}, "alpha_pattern": {"experts.down_proj": 5}}
    folder(tmp_path, gate_and_down(), r=2, target_parameters=["gate_up_proj", "down_proj"], **patterns)
    sites = read(tmp_path).sites
    assert [(s.experts, s.rank, s.scale) for s in sites.values()] == [(2, 3, 4 / 3), (3, 2, 2.5)]


REFUSED: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "no target_parameters": (fused(), {}, "fused expert parameters, but the configuration has no target_parameters"),
    "nested without target_parameters": (gate_and_down(), {}, "m.experts: fused expert parameters, but"),
    "targets of other modules": (gate_and_down(), {"target_parameters": ["mlp.w"]}, "no entry of target_parameters explains"),
    "one of two": (
        fused(),
        {"target_parameters": ["gate_up_proj", "down_proj"]},
        "factors of 1 fused expert parameters, but target_parameters allows down_proj, gate_up_proj",
    ),
    "order unknown": (
        gate_and_down(),
        {"target_parameters": ["alpha", "beta"]},
        "cannot tell which of its factors belong to which of alpha, beta",
    ),
    "shapes of neither": (
        fused(4, 7, f"{X}.base_layer") | fused(3, 4),
        {"target_parameters": ["gate_up_proj", "down_proj"]},
        r"the shapes of its factors \(\[in, out\] \[4, 7\] inside, \[3, 4\] outside\)",
    ),
    "rank unknown": (fused(), {"target_parameters": ["w"], "r": None}, "the number of experts is not known"),
    "rank of another file": (fused(), {"target_parameters": ["w"], "r": 4}, "6 rows of A are no multiple of the rank 4"),
    "square": (
        fused(4, 4),
        {"target_parameters": ["w"], "peft_version": "0.19.1"},
        "input and output are equally wide, and PEFT's version and the model's name do not tell which is which",
    ),
    "a magnitude": (
        fused() | {f"{X}.lora_magnitude_vector": torch.ones(5)},
        {"target_parameters": ["w"]},
        "a magnitude of a module without plain factors",
    ),
}


@pytest.mark.parametrize(("tensors", "settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_decided(tmp_path: Path, tensors: dict[str, Tensor], settings: dict[str, Any], message: str) -> None:
    folder(tmp_path, tensors, **settings)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert caught.value.hint or message.startswith(("a magnitude", "no entry"))


AXES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "by the recipe": ({}, "in_out", "in_out"),
    "the recipe wins": ({"peft_version": "0.18.0"}, "out_in", "out_in"),
    "old PEFT": ({"peft_version": "0.18.1"}, None, "in_out"),
    "old PEFT from source": ({"peft_version": "0.18.2.dev0@abc"}, None, "in_out"),
    "new PEFT": ({"peft_version": "0.19.0", "base_model_name_or_path": "Qwen/Qwen3-30B-A3B"}, None, "out_in"),
    "new PEFT, transposed family": (
        {"peft_version": "0.21.2", "base_model_name_or_path": "openai/gpt-oss-20b"},
        None,
        "in_out",
    ),
    "transposed by its class": (
        {"peft_version": "1.0", "auto_mapping": {"base_model_class": "GptOssForCausalLM", "parent_library": "x"}},
        None,
        "in_out",
    ),
}


@pytest.mark.parametrize(("settings", "chosen", "axes"), AXES.values(), ids=AXES.keys())
def test_axes_of_square_parameters(tmp_path: Path, settings: dict[str, Any], chosen: Any, axes: str) -> None:
    folder(tmp_path, fused(4, 4), target_parameters=["w"], **settings)
    assert read(tmp_path, expert_axes=chosen).sites["m.experts.w"].axes == axes


def test_unsloth_is_asked_for(tmp_path: Path) -> None:
    folder(tmp_path / "a", fused(), target_parameters=["w"], base_model_name_or_path="unsloth/Qwen3-30B-A3B")
    assert any("give expert_layout: unsloth" in note for note in read(tmp_path / "a").notes)
    folder(tmp_path / "b", fused(), target_parameters=["w"])
    assert read(tmp_path / "b").notes == ()
    (tmp_path / "b" / "README.md").write_text("Trained with Unsloth.")
    assert any("README.md names Unsloth" in note for note in read(tmp_path / "b").notes)
    for layout in ("peft", "unsloth"):
        assert read(tmp_path / "b", expert_layout=layout).notes == ()


def test_the_first_adapter_s_axes_are_everybody_s(tmp_path: Path) -> None:
    """PEFT before 0.19 let A read the first axis of the parameter; both forms of one update merge."""
    tensors = fused(4, 5)
    a, b = tensors.values()
    turned = pack(
        b.reshape(5, R, E).permute(2, 1, 0).contiguous(), a.reshape(E, R, 4).mT.contiguous(), "peft"
    )  # A' = B^T, B' = A^T
    folder(tmp_path / "old", dict(zip(tensors, turned, strict=True)), target_parameters=["w"], peft_version="0.18.0")
    folder(tmp_path / "new", tensors, target_parameters=["w"], peft_version="0.20.0")
    old, new = read(tmp_path / "old"), read(tmp_path / "new")
    assert (old.sites["m.experts.w"].axes, new.sites["m.experts.w"].axes) == ("in_out", "out_in")
    for pair in ([new, old], [old, new]):
        (first, second), notes = align(pair)
        assert len(notes) == 1
        assert "they are transposed" in notes[0]
        sites = [adapter.sites["m.experts.w"] for adapter in (first, second)]
        assert sites[0].axes == sites[1].axes
        deltas = [torch.matmul(*reversed(site.read())) for site in sites]
        torch.testing.assert_close(deltas[0], deltas[1])
        assert deltas[0].shape == (E, sites[1].d_out, sites[1].d_in)


def test_another_number_of_experts_is_another_model(tmp_path: Path) -> None:
    folder(tmp_path / "a", fused(), target_parameters=["w"])
    folder(tmp_path / "b", fused(), target_parameters=["w"], r=1)
    with pytest.raises(InputError, match=r"\[3, 5, 4\] in a and \[6, 5, 4\] in b: different base models"):
        align([read(tmp_path / "a"), read(tmp_path / "b")])


def test_mlx(tmp_path: Path) -> None:
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": R, "scale": 20.0}, "model": "x"}
    a, b = torch.randn(E, R, 4), torch.randn(E, 5, R)
    folder(tmp_path, {"m.switch.up.lora_a": a, "m.switch.up.lora_b": b}, config, file="adapters.safetensors")
    site = read(tmp_path).sites["m.switch.up.weight"]
    assert (site.kind, site.experts, site.rank, site.d_in, site.d_out, site.scale) == ("experts", E, R, 4, 5, 20.0)
    assert all(x.equal(y) for x, y in zip(site.read(), (a, b), strict=True))


# --- written by PEFT ------------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """Two fused parameters, output before input, or the other way round as gpt-oss has them."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        up, down = (E, 6, 4), (E, 4, 3)
        if is_transposed:
            up, down = (E, 4, 6), (E, 3, 4)
        self.gate_up_proj = nn.Parameter(torch.randn(up))
        self.down_proj = nn.Parameter(torch.randn(down))


def model(is_transposed: bool) -> nn.Module:
    torch.manual_seed(0)
    block = nn.ModuleDict({"experts": Experts(is_transposed), "q_proj": nn.Linear(4, 4)})
    return nn.ModuleDict({"mlp": block})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"rank_pattern": {"gate_up_proj": 5}, "alpha_pattern": {".*down_proj": 3}}],
    ids=["plain", "rank-stabilised", "patterns"],
)
@pytest.mark.parametrize("both", [True, False], ids=["both", "one"])
def test_peft_s_own_deltas(tmp_path: Path, is_transposed: bool, settings: dict[str, Any], both: bool) -> None:
    targets = ["experts.gate_up_proj", "experts.down_proj"][: 1 + both]
    config = LoraConfig(
        **{"r": 2, "lora_alpha": 6, "target_parameters": targets, "target_modules": ["q_proj"], "init_lora_weights": False},
        **settings,
    )
    torch.manual_seed(1)
    get_peft_model(model(is_transposed), config).save_pretrained(tmp_path)
    wrapped: Any = PeftModel.from_pretrained(model(is_transposed), tmp_path)
    before = {name: value.double().clone() for name, value in model(is_transposed).state_dict().items()}
    after = wrapped.double().merge_and_unload().state_dict()
    axes = "in_out" if is_transposed else "out_in"
    adapter = read(tmp_path, expert_axes=axes)
    assert sorted(adapter.sites) == sorted([*(f"mlp.{target}" for target in targets), "mlp.q_proj"])
    for name, site in adapter.sites.items():
        a, b = site.read()
        delta = site.scale * b.double() @ a.double()
        key = name if site.kind == "experts" else f"{name}.weight"
        expected = after[key] - before[key]
        torch.testing.assert_close(delta.mT if is_transposed and site.kind == "experts" else delta, expected)

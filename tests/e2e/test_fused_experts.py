"""Merging fused experts: every expert like a site of its own, written so that PEFT applies the exact sum."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from small_adapters import PREFIX, error, run, write_adapter, write_recipe
from torch import Tensor

from robustmerge_kit.adapters import pack, read_adapter
from robustmerge_kit.errors import PlanError
from robustmerge_kit.execute import decide_ranks, execute
from robustmerge_kit.plan import Plan, gather, make_plan
from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.resources import Resources
from robustmerge_kit.sources import resolve

E, R = 3, 4
SHAPES = {"gate_up_proj": (12, 8), "down_proj": (8, 6)}
NAMES = {"gate_up_proj": f"{PREFIX}m.experts.base_layer", "down_proj": f"{PREFIX}m.experts"}


def factors(seed: int, r: int = R, dead: tuple[int, ...] = ()) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameter -> A (E, r, d_in), B (E, d_out, r); the B of `dead` experts is zero."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (d_out, d_in) in SHAPES.items():
        a, b = torch.randn(E, r, d_in, generator=draw), 0.1 * torch.randn(E, d_out, r, generator=draw)
        b[list(dead)] = 0
        found[name] = a, b
    return found


def fused(place: Path, seed: int, columns: Any = "peft", r: int = R, dead: tuple[int, ...] = (), **settings: Any) -> Path:
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors(seed, r, dead).items():
        for half, value in zip("AB", pack(a, b, columns), strict=True):
            tensors[f"{NAMES[name]}.lora_{half}.weight"] = value.contiguous()
    targets = [f"experts.{name}" for name in SHAPES]
    return write_adapter(place, tensors=tensors, r=r, target_modules=[], target_parameters=targets, **settings)


def apart(place: Path, seed: int, r: int = R, dead: tuple[int, ...] = ()) -> Path:
    """The same update as plain modules, one per expert, with the names experts have as sites."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors(seed, r, dead).items():
        for e in range(E):
            tensors[f"{PREFIX}m.experts.{name}[{e}].lora_A.weight"] = a[e].clone()
            tensors[f"{PREFIX}m.experts.{name}[{e}].lora_B.weight"] = b[e].clone()
    return write_adapter(place, tensors=tensors, r=r, target_modules=[])


class Memory:
    """Tensors by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def write(self, name: str, tensor: Tensor) -> None:
        assert name not in self.tensors
        self.tensors[name] = tensor.clone()


def merged_by(recipe: Path, resources: Resources) -> tuple[Plan, Mapping[str, Tensor]]:
    loaded = load_recipe(recipe)
    identities = [f"input {i}" for i in range(len(loaded.adapters))]
    plan = decide_ranks(make_plan(loaded, gather(loaded)), identities, resources)
    memory = Memory()
    execute(plan, memory, identities, resources)
    return plan, memory.tensors


def expert_deltas(folder_or_tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for step in plan.steps:
        a, b = (folder_or_tensors[name].double() for name in step.names)
        a, b = a.reshape(E, step.width, -1), b.reshape(b.shape[0], step.width, E).permute(2, 0, 1)
        found |= {f"{step.site}[{e}]": b[e] @ a[e] for e in range(E)}
    return found


CASES: dict[str, dict[str, Any]] = {
    "sum": {"method": "task_arithmetic"},
    "mean": {"method": "linear"},
    "ties": {"method": "ties", "parameters": {"density": 0.5}},
    "ties over all sites": {"method": "ties", "parameters": {"density": 0.5, "scope": "global"}},
    "random masks": {"method": "dare_ties", "parameters": {"density": 0.5}},
    "in the core": {"method": "ties", "space": "core", "parameters": {"density": 0.5}},
    "in a common basis": {"method": "ties", "space": "ctm", "parameters": {"density": 0.5}},
    "knots": {"method": "ties", "space": "knots", "parameters": {"density": 0.5}},
    "robustmerge": {"method": "robustmerge"},
    "tsv_m": {"method": "tsv_m"},
    "a rank": {"method": "svd", "output": {"rank": 3}},
    "an energy": {"method": "task_arithmetic", "output": {"rank": {"energy": 0.9}}},
    "a budget": {"method": "task_arithmetic", "output": {"rank": {"budget": {"average": 5}}}},
    "steps": {"method": "linear", "pre": [{"norm_balance": {}}], "post": [{"rescale_output": {"to": "mean_norm"}}]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [None, 100])
def test_every_expert_is_a_site_of_its_own(case: str, batch: int | None, tmp_path: Path) -> None:
    """Ranks that differ, and experts without an update in one adapter, included."""
    settings = {"output": {}, **CASES[case]}
    settings["output"] = {"dtype": "float32", **settings["output"]}
    resources = Resources(workers=2, batch=batch)
    ways = {"fused": fused, "apart": apart}
    results = {}
    for way, write in ways.items():
        place = tmp_path / way
        place.mkdir()
        inputs = [write(place / "a", 1), write(place / "b", 2, r=3, dead=(1,)), write(place / "c", 3, dead=(0, 2))]
        results[way] = merged_by(write_recipe(place, inputs, **settings), resources)
    plan, tensors = results["fused"]
    expected: dict[str, Tensor] = {}
    for step in results["apart"][0].steps:
        a, b = (results["apart"][1][name].double() for name in step.names)
        expected[step.site] = b @ a
    found = expert_deltas(tensors, plan)
    assert found.keys() == expected.keys()
    assert max(error(found[site], expected[site]) for site in expected) < 1e-5
    assert {step.width for step in plan.steps} == {step.width for step in results["apart"][0].steps}


@pytest.mark.parametrize("columns", [("peft", "peft"), ("unsloth", "unsloth"), ("peft", "unsloth")])
def test_written_in_the_inputs_order(columns: tuple[Any, Any], tmp_path: Path) -> None:
    inputs = [fused(tmp_path / str(i), i, columns[i]) for i in range(2)]
    entries = [{"adapter": str(path), "expert_layout": layout} for path, layout in zip(inputs, columns, strict=True)]
    receipt = run(write_recipe(tmp_path, entries, "task_arithmetic"), tmp_path / "out")
    written = columns[0] if columns[0] == columns[1] else "peft"
    again = read_adapter(resolve(str(tmp_path / "out"), tmp_path), label="out", expert_layout=written)
    for name in SHAPES:
        site = again.sites[f"m.experts.{name}"]
        a, b = site.read()
        expected = sum(2 * f[name][1].double() @ f[name][0].double() for f in (factors(0), factors(1)))
        assert error(site.scale * b.double() @ a.double(), expected) < 1e-6  # pyright: ignore[reportArgumentType]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_parameters"] == ["experts.down_proj", "experts.gate_up_proj"]
    assert config["target_modules"] == []
    assert [site["site"] for site in receipt.content["sites"]] == ["m.experts.down_proj", "m.experts.gate_up_proj"]


def test_parameters_of_different_inputs_are_nested_together(tmp_path: Path) -> None:
    """One adapter has each parameter, all have a plain module; in the common file gate_up_proj is inside."""
    inputs = []
    for i, name in enumerate(SHAPES):
        a, b = pack(*factors(i)[name], "peft")
        tensors = {f"{PREFIX}m.experts.lora_A.weight": a.contiguous(), f"{PREFIX}m.experts.lora_B.weight": b.contiguous()}
        tensors |= {f"{PREFIX}m.q.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
        inputs.append(
            write_adapter(tmp_path / name, tensors=tensors, target_modules=["q"], target_parameters=[f"experts.{name}"])
        )
    run(write_recipe(tmp_path, inputs, "task_arithmetic", missing="zero"), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    shapes = {name.removeprefix(PREFIX): tuple(value.shape) for name, value in stored.items() if "experts" in name}
    assert shapes == {
        "m.experts.base_layer.lora_A.weight": (E * 2 * R, 8),
        "m.experts.base_layer.lora_B.weight": (12, 2 * R * E),
        "m.experts.lora_A.weight": (E * 2 * R, 6),
        "m.experts.lora_B.weight": (8, 2 * R * E),
    }


@pytest.mark.parametrize("gone", SHAPES)
def test_only_some_experts_of_the_model_are_written(gone: str, tmp_path: Path) -> None:
    """Entries that would select more than what is written become full names; what stays alone in its module is not nested."""
    tensors = {
        name.replace("m.", f"m.{i}."): v
        for i in range(2)
        for name, v in load_file(fused(tmp_path / "x", 0) / "adapter_model.safetensors").items()
    }
    place = write_adapter(
        tmp_path / "a", tensors=tensors, target_modules=[], target_parameters=[f"experts.{name}" for name in SHAPES]
    )
    weight = [{"filter": f"m.0.experts.{gone}", "value": 0.0}, {"value": 1.0}]
    run(write_recipe(tmp_path, [{"adapter": str(place), "parameters": {"weight": weight}}], "linear"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    written = sorted({f"m.{i}.experts.{name}" for i in range(2) for name in SHAPES} - {f"m.0.experts.{gone}"})
    assert config["target_parameters"] == written
    again = read_adapter(resolve(str(tmp_path / "out"), tmp_path), label="out")
    assert sorted(again.sites) == written
    for site, found in again.sites.items():
        (a, b), (a0, b0) = found.read(), factors(0)[site.rpartition(".")[2]]
        assert error(found.scale * b.double() @ a.double(), 2 * b0.double() @ a0.double()) < 1e-6


def test_servers_that_take_linear_modules_only(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, [fused(tmp_path / "a", 0)], "linear", output={"for": "vllm"})
    with pytest.raises(PlanError, match="2 sites are embeddings, convolutions, fused experts or lm_head"):
        run(recipe, tmp_path / "out")


# --- models of transformers -----------------------------------------------------------------------------------------------


def qwen() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "moe_intermediate_size": 6, "head_dim": 4, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1))


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    sizes = {"hidden_size": 8, "intermediate_size": 12, "vocab_size": 32}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=4, num_experts_per_tok=2))


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "head_dim": 4}
    sizes = {"hidden_size": 8, "intermediate_size": 12, "vocab_size": 32}
    return GptOssForCausalLM(GptOssConfig(**sizes, **heads, num_local_experts=4, num_experts_per_tok=2))


def applied(make: Any, folder: Path) -> dict[str, Tensor]:
    """What PEFT's own merge changes in the model's weights, in float64."""
    before = {name: value.double().clone() for name, value in make().state_dict().items()}
    model: Any = PeftModel.from_pretrained(make(), folder)
    after = model.double().merge_and_unload().state_dict()
    return {name: after[name] - before[name] for name in before if not after[name].equal(before[name])}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [qwen, mixtral, gpt_oss])
def test_peft_applies_the_sum(make: Any, tmp_path: Path) -> None:
    folders = []
    for i, rank in enumerate((2, 3)):
        torch.manual_seed(i)
        targets = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
        settings = {"target_modules": ["q_proj"], "target_parameters": targets, "init_lora_weights": False}
        model: Any = get_peft_model(make(), LoraConfig(r=rank, lora_alpha=6, **settings))
        model.save_pretrained(tmp_path / str(i))
        folders.append(tmp_path / str(i))
    entries = [{"adapter": str(f), "parameters": {"weight": w}} for f, w in zip(folders, (0.7, -0.4), strict=True)]
    run(write_recipe(tmp_path, entries, "task_arithmetic", output={"dtype": "float32"}), tmp_path / "out")
    first, second, merged = (applied(make, folder) for folder in (*folders, tmp_path / "out"))
    assert first.keys() == second.keys() == merged.keys()
    assert len(merged) == 3 * model.config.num_hidden_layers
    for name, change in merged.items():
        assert error(change, 0.7 * first[name] - 0.4 * second[name]) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_peft_reads_a_parameter_that_is_alone_in_its_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"], "init_lora_weights": False}
    model: Any = get_peft_model(qwen(), LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], **settings))
    model.save_pretrained(tmp_path / "a")
    weight = [{"filter": "layers.0.mlp.experts.down_proj", "value": 0.0}, {"value": 1.0}]
    entries = [{"adapter": str(tmp_path / "a"), "parameters": {"weight": weight}}]
    run(write_recipe(tmp_path, entries, "task_arithmetic", output={"dtype": "float32"}), tmp_path / "out")
    whole, part = applied(qwen, tmp_path / "a"), applied(qwen, tmp_path / "out")
    assert whole.keys() - part.keys() == {"model.layers.0.mlp.experts.down_proj"}
    assert max(error(change, whole[name]) for name, change in part.items()) < 1e-6

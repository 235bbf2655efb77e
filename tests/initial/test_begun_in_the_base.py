"""PiSSA and OLoRA adapters that PEFT began and saved: relative to the plain base they change what PEFT's own merge does."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_adapters import error, read_deltas, run, write_recipe
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from robustmerge_kit.errors import InputError, PlanError, RmkitError
from robustmerge_kit.merge import prepare
from robustmerge_kit.verify import verify

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore:PiSSA changes the base weights"),
]

Build = Callable[[], nn.Module]


class Linears(nn.Module):
    """Tall, wide and square weights; two stored [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Linear(10, 14)
        self.wide = nn.Linear(16, 9, bias=False)
        self.square = Conv1D(12, 12)
        self.turned = Conv1D(15, 11)


SQUARE, ALL = ["tall", "wide", "square"], ["tall", "wide", "square", "turned"]
"""OLoRA of PEFT breaks on weights that are stored [in, out] and not square."""


def linears() -> nn.Module:
    torch.manual_seed(0)
    model = Linears()
    with torch.no_grad():
        model.square.weight.normal_()
        model.turned.weight.normal_()
    return model


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, **sizes))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=16))


MODELS: dict[str, tuple[Build, Any]] = {
    "linears": (linears, SQUARE),
    "llama": (llama, ["q_proj", "k_proj", "up_proj", "down_proj"]),
    "gpt2": (gpt2, ["c_attn", "c_fc", "attn.c_proj"]),
}


def write_base(place: Path, build: Build = linears) -> Path:
    model: Any = build()
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(place)
        return place
    place.mkdir()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return place


def train(
    place: Path,
    init: str,
    seed: int = 1,
    build: Build = linears,
    targets: Any = SQUARE,
    *,
    convert: bool = False,
    **settings: Any,
) -> Path:
    """An adapter that has moved a little from where PEFT began it, saved as PEFT saves it.

    convert: and, in its folder `converted`, as PEFT converts it with the initial factors.
    """
    transposed = {"fan_in_fan_out": True} if build is not llama else {}
    config = {"r": 3, "lora_alpha": 6, "target_modules": targets, "init_lora_weights": init, **transposed, **settings}
    model: Any = get_peft_model(build(), LoraConfig(**config))
    if convert:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(str(place / "initial"))
        model.peft_config["default"].init_lora_weights = init
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.add_(0.02 * torch.randn(value.shape) if "magnitude" not in name else 0.05 * value)
    model.save_pretrained(str(place), save_embedding_layers=False)
    if convert:
        model.save_pretrained(str(place / "converted"), path_initial_model_for_weight_conversion=str(place / "initial"))
    return place


def applied(place: Path, build: Build = linears) -> dict[str, Tensor]:
    """What PEFT's merge makes of the plain base, float64, as the model stores it."""
    before = {name: value.double().clone() for name, value in build().state_dict().items()}
    model: Any = PeftModel.from_pretrained(build(), str(place))
    after = model.merge_and_unload().state_dict()
    return {name: after[name].double() - value for name, value in before.items() if not after[name].double().equal(value)}


def fold(place: Path, adapters: Sequence[Any], method: str = "linear", **keys: Any) -> Mapping[str, Any]:
    output = {"kind": "model", **keys.pop("output", {})}
    recipe = write_recipe(place, adapters, method, base_model="base", output=output, **keys)
    return run(recipe, place / "out", overwrite=True).content


def changes(place: Path) -> dict[str, Tensor]:
    after, before = load_file(place / "out" / "model.safetensors"), load_file(place / "base" / "model.safetensors")
    return {name: after[name].double() - before[name].double() for name in before if not after[name].equal(before[name])}


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("model", MODELS)
def test_one_adapter_is_peft_s_own_merge(model: str, init: str, tmp_path: Path) -> None:
    build, targets = MODELS[model]
    if model == "gpt2" and init == "olora":
        targets = ["attn.c_proj"]
    write_base(tmp_path / "base", build)
    adapter = train(tmp_path / "a", init, build=build, targets=targets)
    fold(tmp_path, [adapter])
    close(changes(tmp_path), applied(adapter, build))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"tall": 5}, "alpha_pattern": {"wide": 1}},
        {"r": 9},
        {"target_modules": ALL},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_pissa(settings: dict[str, Any], tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", "pissa", **settings)
    fold(tmp_path, [adapter])
    close(changes(tmp_path), applied(adapter))


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"wide": 1}}])
def test_settings_of_olora(settings: dict[str, Any], tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", "olora", **settings)
    fold(tmp_path, [adapter])
    close(changes(tmp_path), applied(adapter))


def three(place: Path) -> tuple[list[Any], dict[str, Tensor]]:
    """PiSSA, OLoRA and plain LoRA, and the float64 sum of what each changes alone."""
    write_base(place / "base")
    adapters = [train(place / "a", "pissa"), train(place / "b", "olora", 2, r=2), train(place / "c", "gaussian", 3)]
    weights = [0.7, -0.4, 0.5]
    each = [applied(adapter) for adapter in adapters]
    total = {name: sum((w * one[name] for w, one in zip(weights, each, strict=True)), torch.zeros(())) for name in each[0]}
    return [{"adapter": str(a), "parameters": {"weight": w}} for a, w in zip(adapters, weights, strict=True)], total


def test_several_adapters_are_the_sum_of_their_deltas(tmp_path: Path) -> None:
    entries, total = three(tmp_path)
    content = fold(tmp_path, entries, "task_arithmetic")
    close(changes(tmp_path), total)
    assert any("a: trained on a modified base (init_lora_weights: pissa)" in note for note in content["notes"])
    assert "PiSSA: 3 weights of the base are decomposed, the largest of rank 12" in content["notes"]


def test_as_an_adapter_of_the_plain_base(tmp_path: Path) -> None:
    """PEFT loads what is written on the plain base as it is: with twice the ranks, and nothing to begin with."""
    entries, total = three(tmp_path)
    run(write_recipe(tmp_path, entries, "cat", base_model="base"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (6 + 4 + 3, True)
    close(applied(tmp_path / "out"), total)
    deltas = {f"{name}.weight": delta if name != "square" else delta.T for name, delta in read_deltas(tmp_path / "out").items()}
    close(deltas, total)


@pytest.mark.parametrize(
    ("method", "output"),
    [("task_arithmetic", {"kind": "model"}), ("cat", {}), ("ties", {"kind": "model"}), ("tsv_m", {}), ("robustmerge", {})],
)
def test_verify_agrees(method: str, output: dict[str, Any], tmp_path: Path) -> None:
    """Its B0 and A0 are of other decompositions than the merge's; a wrong base shows."""
    write_base(tmp_path / "base")
    adapters = [
        train(tmp_path / "a", "pissa"),
        train(tmp_path / "b", "olora", 2),
        train(tmp_path / "c", "pissa", 3, use_dora=True),
    ]
    keys = {"dora": "delta"} if method != "cat" else {}
    chosen = adapters if method != "cat" else adapters[:2]
    run(write_recipe(tmp_path, chosen, method, base_model="base", output=output, **keys), tmp_path / "out")
    report = verify(tmp_path / "out", samples=None)
    assert [check.problem for check in report.checks if check.problem] == []
    assert len(report.checks) >= 3


def test_the_cosines_are_of_the_deltas(tmp_path: Path) -> None:
    """Not of B A, which is nearly the same part of the base in all of them."""
    write_base(tmp_path / "base")
    adapters = [train(tmp_path / "a", "pissa"), train(tmp_path / "b", "pissa", 2)]
    content = fold(tmp_path, adapters, "task_arithmetic")
    one, two = ({name: value.flatten() for name, value in applied(adapter).items()} for adapter in adapters)
    dot = sum(float(one[name] @ two[name]) for name in one)
    norms = [sum(float(value.square().sum()) for value in each.values()) ** 0.5 for each in (one, two)]
    assert content["conflict"]["cosines"][0][1] == pytest.approx(dot / norms[0] / norms[1], abs=1e-4)


METHODS: dict[str, dict[str, Any]] = {
    "robustmerge": {},
    "ties": {"parameters": {"density": 0.4}},
    "sce": {},
    "ties in knots": {"space": "knots", "output": {"rank": 4}},
    "karcher": {},
}


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods_see_what_peft_converts(method: str, tmp_path: Path) -> None:
    """PEFT converts where it knows the initial factors: to plain adapters of twice the rank."""
    write_base(tmp_path / "base")
    begun = [train(tmp_path / "begun" / name, "pissa", seed, convert=True) for seed, name in enumerate("ab")]
    name = method.split()[0]
    fold(tmp_path, begun, name, **METHODS[method])
    found = changes(tmp_path)
    fold(tmp_path, [place / "converted" for place in begun], name, **METHODS[method])
    for name, expected in changes(tmp_path).items():
        assert error(found[name], expected) < 1e-4, name


def test_allowed_as_it_is_is_taken_as_it_is(tmp_path: Path) -> None:
    """With `modified_init` B A is the delta: for a base_model that is the adapter's own residual base."""
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", "pissa")
    fold(tmp_path, [adapter], allow=["modified_init"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    b, a = (tensors[f"base_model.model.tall.lora_{half}.weight"].double() for half in "BA")
    torch.testing.assert_close(changes(tmp_path)["tall.weight"], 2 * b @ a, rtol=1e-5, atol=1e-5)


def message(recipe: Path) -> tuple[type[RmkitError], str]:
    with pytest.raises(RmkitError) as caught:
        prepare(recipe)
    return type(caught.value), f"{caught.value.where}: {caught.value.what} ({caught.value.hint})"


def test_without_the_base(tmp_path: Path) -> None:
    kind, said = message(write_recipe(tmp_path, [train(tmp_path / "a", "olora")]))
    assert kind is InputError
    assert "trained on a modified base (init_lora_weights: olora)" in said
    assert "base_model" in said


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "loftq", "lora_ga"])
def test_what_the_base_does_not_tell_is_refused(init: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", "pissa")
    change(adapter, init_lora_weights=init)
    kind, said = message(write_recipe(tmp_path, [adapter], base_model="base", output={"kind": "model"}))
    assert kind is InputError
    assert f"trained on a modified base (init_lora_weights: {init})" in said
    assert "path_initial_model_for_weight_conversion" in said
    assert "base_model" not in said


def change(adapter: Path, **settings: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"lora_alpha": 0}, "needs a positive scale, not 0"),
        ({"target_parameters": ["tall.weight"]}, "not for target_parameters"),
    ],
)
def test_what_training_cannot_have_begun_with(settings: dict[str, Any], part: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", "pissa", targets=["tall"])
    change(adapter, **settings)
    kind, said = message(write_recipe(tmp_path, [adapter], base_model="base"))
    assert (kind, part in said) == (InputError, True), said


def test_a_head_that_shares_its_weight_is_refused(tmp_path: Path) -> None:
    """PEFT takes the part out of the embedding too, which no delta of the head can tell."""
    build = lambda: LlamaForCausalLM(LlamaConfig(**{**llama().config.to_dict(), "tie_word_embeddings": True}))  # noqa: E731
    write_base(tmp_path / "base", build)
    adapter = train(tmp_path / "a", "pissa", build=llama, targets=["lm_head"])
    kind, said = message(write_recipe(tmp_path, [adapter], base_model="base", output={"kind": "model"}))
    assert kind is InputError
    assert "lm_head shares its weight with model.embed_tokens.weight" in said


def test_dora_s_word_is_still_needed(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", "pissa", use_dora=True)
    assert message(write_recipe(tmp_path, [adapter], base_model="base"))[0] is PlanError


def test_nan_in_the_base_is_the_base_s(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    adapter = train(tmp_path / "a", "pissa")
    tensors = load_file(base / "model.safetensors")
    tensors["wide.weight"][1, 1] = float("nan")
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(InputError, match=r"wide\.weight: holds NaN") as caught:
        fold(tmp_path, [adapter])
    assert "base" in caught.value.where + caught.value.what


def test_a_copy_of_what_training_began_with_changes_nothing(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=SQUARE, init_lora_weights="pissa", fan_in_fan_out=True)
    model: Any = get_peft_model(linears(), config)
    model.save_pretrained(str(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    fold(tmp_path, [tmp_path / "a", tmp_path / "b"], "task_arithmetic")
    before = linears().state_dict()
    for name, value in changes(tmp_path).items():
        assert float(value.norm()) < 1e-5 * float(before[name].norm())

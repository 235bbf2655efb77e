"""Heads, biases, token rows and grown vocabularies meet the base's own values when a merge is folded in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from small_adapters import entry, run, write_adapter, write_recipe
from small_bases import read_weights, tensors, write_base
from tiny_models import IDS, TEXT, llama
from torch import Tensor

from robustmerge_kit.errors import InputError, PlanError

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

T = "model.embed_tokens.token_adapter.trainable_tokens_delta"
HEAD = "lm_head.weight"


def case(place: Path, held: Sequence[dict[str, Tensor]], method: str = "linear", **keys: Any) -> dict[str, Tensor]:
    """Fold small adapters that hold these extras, and read the model back."""
    write_base(place / "base", tensors(), shards=3)
    configs = keys.pop("configs", [{}] * len(held))
    weights = keys.pop("weights", [1.0] * len(held))
    adapters = [
        write_adapter(place / f"a{i}", i, extras=each, **config)
        for i, (each, config) in enumerate(zip(held, configs, strict=True))
    ]
    entries = [entry(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True)]
    recipe = write_recipe(place, entries, method, base_model="base", output={"kind": "model"}, **keys)
    return read_weights(run(recipe, place / "out", overwrite=True).path)


def head(seed: int) -> Tensor:
    return torch.randn(20, 10, generator=torch.Generator().manual_seed(seed))


# --- saved modules ------------------------------------------------------------------------------------------------------


def test_one_adapters_head_is_taken_bit_for_bit(tmp_path: Path) -> None:
    assert torch.equal(case(tmp_path, [{HEAD: head(1)}])[HEAD], head(1))


def test_heads_that_differ_need_a_word(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="differs between"):
        case(tmp_path, [{HEAD: head(1)}, {HEAD: head(2)}])


def test_equal_heads_are_kept(tmp_path: Path) -> None:
    assert torch.equal(case(tmp_path, [{HEAD: head(1)}, {HEAD: head(1)}])[HEAD], head(1))


def test_the_mean_of_heads_counts_the_base_where_an_adapter_has_none(tmp_path: Path) -> None:
    found = case(tmp_path, [{HEAD: head(1)}, {}, {HEAD: head(2)}], extras="mean", weights=[1.0, 2.0, 1.0])
    wanted = (head(1).double() + 2 * tensors()[HEAD].double() + head(2).double()) / 4
    torch.testing.assert_close(found[HEAD].double(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("word", "which"), [("first", 1), ({"first": "a1"}, 2), ("drop", None)])
def test_one_head_can_be_chosen(word: Any, which: int | None, tmp_path: Path) -> None:
    found = case(tmp_path, [{HEAD: head(1)}, {HEAD: head(2)}], extras=word)[HEAD]
    assert torch.equal(found, tensors()[HEAD] if which is None else head(which))


# --- biases and token rows: differences to the base ---------------------------------------------------------------------


def _biased(place: Path, method: str, **keys: Any) -> Tensor:
    weights = {**tensors(1), "model.layers.0.q_proj.bias": torch.arange(12.0)}
    write_base(place / "base", weights)
    where = {"model.layers.0.q_proj": (12, 10)}
    adapters = [
        write_adapter(
            place / f"a{i}",
            i,
            where=where,
            bias="lora_only",
            extras={"model.layers.0.q_proj.base_layer.bias": torch.ones(12) * i},
        )
        for i in (1, 2)
    ]
    entries = [entry(adapters[0], 0.5), entry(adapters[1], 0.25)]
    recipe = write_recipe(place, entries, method, base_model="base", output={"kind": "model"}, **keys)
    return read_weights(run(recipe, place / "out").path)["model.layers.0.q_proj.bias"]


def test_biases_move_by_their_differences_to_the_base(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    found = _biased(tmp_path, "task_arithmetic")
    torch.testing.assert_close(found, base + 0.5 * (1 - base) + 0.25 * (2 - base))


def test_linear_divides_biases_by_the_weights_as_it_does_deltas(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    found = _biased(tmp_path, "linear")
    torch.testing.assert_close(found, base + (0.5 * (1 - base) + 0.25 * (2 - base)) / 0.75)


def test_a_method_without_a_rule_for_biases_needs_a_word(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not say how whole values are combined") as caught:
        _biased(tmp_path, "ties", parameters={"density": 0.5})
    assert "extras: mean" in caught.value.hint


def test_token_rows_move_and_the_others_stay(tmp_path: Path) -> None:
    rows = [torch.full((2, 10), 1.0), torch.full((2, 10), 3.0)]
    configs = [{"trainable_token_indices": {"embed_tokens": [2, 5]}}, {"trainable_token_indices": {"embed_tokens": [5, 7]}}]
    found = case(tmp_path, [{T: rows[0]}, {T: rows[1]}], "task_arithmetic", configs=configs, weights=[0.5, 1.0])
    base = tensors()["model.embed_tokens.weight"]
    wanted = base.clone()
    wanted[2] += 0.5 * (1 - base[2])
    wanted[5] += 0.5 * (1 - base[5]) + (3 - base[5])
    wanted[7] += 3 - base[7]
    torch.testing.assert_close(found["model.embed_tokens.weight"], wanted)


def test_a_token_the_base_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"token 20 .* the base has 20 rows"):
        case(tmp_path, [{T: torch.ones(1, 10)}], configs=[{"trainable_token_indices": {"embed_tokens": [20]}}])


# --- vocabularies and ties ----------------------------------------------------------------------------------------------


def test_a_vocabulary_grows_when_embedding_and_head_grow_together(tmp_path: Path) -> None:
    grown = torch.cat((tensors()["model.embed_tokens.weight"], torch.ones(3, 10)))
    found = case(tmp_path, [{"model.embed_tokens.weight": grown, HEAD: 2 * grown}])
    assert torch.equal(found["model.embed_tokens.weight"], grown)
    assert torch.equal(found[HEAD], 2 * grown)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 23
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())


def test_a_vocabulary_that_grows_in_a_part_only(tmp_path: Path) -> None:
    grown = torch.cat((tensors()["model.embed_tokens.weight"], torch.ones(3, 10)))
    with pytest.raises(PlanError, match=r"grew in a part only: model.embed_tokens.weight has 23 rows, lm_head.weight keeps 20"):
        case(tmp_path, [{"model.embed_tokens.weight": grown}])


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_tied_weights_are_separated(module: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = llama(num_hidden_layers=1, tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    before = base.model.embed_tokens.weight.detach().clone()
    where = {module: (48, 32)}
    draw = torch.Generator().manual_seed(3)
    a, b = torch.randn(4, 32, generator=draw), torch.randn(48, 4, generator=draw)
    if module == "lm_head":
        stored = {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    else:
        stored = {f"base_model.model.{module}.lora_embedding_A": b.T, f"base_model.model.{module}.lora_embedding_B": a.T}
    stored = {name: value.contiguous() for name, value in stored.items()}
    write_adapter(tmp_path / "a", where=where, tensors=stored)
    run(write_recipe(tmp_path, [tmp_path / "a"], base_model="base", output={"kind": "model"}), tmp_path / "out")
    model = hf.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    moved = before + 2 * b @ a
    head, embedding = (moved, before) if module == "lm_head" else (before, moved)
    torch.testing.assert_close(model.lm_head.weight.detach(), head)
    torch.testing.assert_close(model.model.embed_tokens.weight.detach(), embedding)
    assert model.config.tie_word_embeddings is False


# --- models whose class has a head the base lacks -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_classifier_trained_on_a_bare_base(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    if kind == "gpt2":
        config = hf.GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=4, n_positions=16, pad_token_id=0)
        hf.GPT2Model(config).save_pretrained(tmp_path / "base")
        loader, targets = hf.GPT2ForSequenceClassification, ["c_attn"]
    else:
        hf.BertModel(hf.BertConfig(**TEXT)).save_pretrained(tmp_path / "base")
        loader, targets = hf.BertForSequenceClassification, ["query", "value"]
    model: Any = loader.from_pretrained(tmp_path / "base", num_labels=3)
    adapted: Any = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.copy_(0.2 * torch.randn(value.shape))
    adapted.save_pretrained(tmp_path / "a")
    run(write_recipe(tmp_path, [tmp_path / "a"], base_model="base", output={"kind": "model"}), tmp_path / "out")
    folded: Any = loader.from_pretrained(tmp_path / "out")
    assert folded.config.num_labels == 3
    with torch.no_grad():
        wanted, found = (m.eval()(input_ids=IDS).logits for m in (adapted, folded))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


# --- what cannot be folded ----------------------------------------------------------------------------------------------

BAD_BASES = {
    "adapter": (lambda place: write_adapter(place / "base"), "is an adapter, not a base model"),
    "empty": (lambda place: (place / "base").mkdir(), "holds no model weights"),
    "missing shard": (
        lambda place: (write_base(place / "base", tensors(), 3) / "model-00002-of-00003.safetensors").unlink(),
        "names the shard model-00002-of-00003.safetensors, which is missing",
    ),
}


@pytest.mark.parametrize("name", BAD_BASES)
def test_bases_that_are_refused(name: str, tmp_path: Path) -> None:
    make, message = BAD_BASES[name]
    make(tmp_path)
    write_adapter(tmp_path / "a")
    with pytest.raises(InputError, match=message) as caught:
        run(write_recipe(tmp_path, [tmp_path / "a"], base_model="base", output={"kind": "model"}), tmp_path / "out")
    assert caught.value.where.startswith("base_model: ")
    assert not (tmp_path / "out").exists()


def test_no_base_no_model(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    with pytest.raises(PlanError, match="needs the base"):
        run(write_recipe(tmp_path, [tmp_path / "a"], output={"kind": "model"}), tmp_path / "out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [({"model.layers.0.q_proj.qweight": torch.zeros(2, dtype=torch.int32)}, "GPTQ"), ({}, "float8_e4m3fn")],
    ids=["gptq", "fp8"],
)
def test_quantised_bases_name_their_scheme(extra: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    weights = {**tensors(), **extra}
    if not extra:
        weights["model.layers.0.q_proj.weight"] = weights["model.layers.0.q_proj.weight"].to(torch.float8_e4m3fn)
    write_base(tmp_path / "base", weights)
    write_adapter(tmp_path / "a")
    with pytest.raises(InputError, match=message) as caught:
        run(write_recipe(tmp_path, [tmp_path / "a"], base_model="base", output={"kind": "model"}), tmp_path / "out")
    assert "unquantised" in caught.value.hint


def test_a_foreign_adapter_never_gives_the_unchanged_base(tmp_path: Path) -> None:
    write_base(tmp_path / "base", tensors())
    write_adapter(tmp_path / "a", where={"transformer.blocks.0.mixer": (12, 10)})
    with pytest.raises(InputError, match=r"none of its modules are in the base: it has transformer.blocks.0.mixer"):
        run(write_recipe(tmp_path, [tmp_path / "a"], base_model="base", output={"kind": "model"}), tmp_path / "out")


def test_part_of_the_modules_can_be_folded_on_request(tmp_path: Path) -> None:
    write_base(tmp_path / "base", tensors())
    where = {"model.layers.0.q_proj": (12, 10), "model.layers.0.mixer": (12, 10)}
    write_adapter(tmp_path / "a", where=where)
    keys: dict[str, Any] = {"base_model": "base", "output": {"kind": "model"}}
    with pytest.raises(InputError, match=r"1 of 2 of its modules are in the base: it has model.layers.0.mixer"):
        run(write_recipe(tmp_path, [tmp_path / "a"], **keys), tmp_path / "out")
    receipt = run(write_recipe(tmp_path, [tmp_path / "a"], allow=["unmatched"], **keys), tmp_path / "out")
    assert any("1 modules are not in the base: model.layers.0.mixer" in note for note in receipt.content["notes"])
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.q_proj"
    delta = 2 * stored[f"{prefix}.lora_B.weight"] @ stored[f"{prefix}.lora_A.weight"]
    torch.testing.assert_close(
        read_weights(tmp_path / "out")["model.layers.0.q_proj.weight"], tensors()["model.layers.0.q_proj.weight"] + delta
    )


def test_a_base_with_values_that_are_not_numbers_is_blamed_itself(tmp_path: Path) -> None:
    weights = tensors()
    weights["model.layers.0.q_proj.weight"][3, 2] = torch.nan
    write_base(tmp_path / "base", weights)
    write_adapter(tmp_path / "a")
    with pytest.raises(InputError, match=r"model.layers.0.q_proj.weight.*NaN"):
        run(write_recipe(tmp_path, [tmp_path / "a"], base_model="base", output={"kind": "model"}), tmp_path / "out")

"""The collection of real adapters: every folder is read as it was published, or refused for the reason that is true of it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from robustmerge_kit.adapters import align, read_adapter
from robustmerge_kit.errors import InputError
from robustmerge_kit.sources import resolve


@dataclass(frozen=True)
class Read:
    sites: int
    rank: int
    scale: float
    heads: tuple[str, ...] = ()
    base: str | None = None
    layout: str = "peft"
    notes: tuple[str, ...] = field(default=())


HEADS = ("classifier", "pre_classifier")
NUMBERED = "the file does not name its modules"

TABLE: dict[str, Read | str] = {
    "Hareshjethani__BERT-GPT2-Multitask-Finetuning__root": Read(24, 8, 4, ("classifier",), "bert-base-uncased"),
    "Hirvita6__LoRA-flower-diffusion__lora_weights--pytorch_lora_weights": "is truncated: 2 bytes",
    "JamesQFreeman__LoRA-ViT__lora__at-300bee1": r"24 modules have w_a but no w_b \(first w_a_000\)",
    "LMHan122__lightweight-fine-tuning-peft__gpt-lora": Read(12, 8, 1.25, ("score",), "gpt2"),
    "LaziestCactus__GPTLoRA__lora-model__at-32ef5a0": Read(12, 8, 4, (), "gpt2"),
    "MathieuNlp__Sam_LoRA__lora__at-9c02871": Read(24, 4, 1, (), None, "numbered", (NUMBERED,)),
    "MathieuNlp__Sam_LoRA__lora_weights--lora_rank2": Read(24, 2, 1, (), None, "numbered", (NUMBERED,)),
    "MathieuNlp__Sam_LoRA__lora_weights--lora_rank2__at-6912797": Read(24, 2, 1, (), None, "numbered", (NUMBERED,)),
    "MathieuNlp__Sam_LoRA__lora_weights--lora_rank4": Read(24, 4, 1, (), None, "numbered", (NUMBERED,)),
    "Phiziics__FineTuningLLM__dbu-lora-tc--checkpoint-2500": Read(6, 4, 8, HEADS, "distilbert-base-uncased"),
    "T-Sharif__lightweight-fine-tuning__peft_results--checkpoint-400": Read(24, 8, 1, ("classifier",), "bert-base-uncased"),
    "Tashu014__lora-imdb-distilbert__root": Read(12, 8, 2, HEADS, "distilbert-base-uncased"),
    "Umar-khan4260__Pseudo-code-to-Cpp-Translator__model": "adapter_config.json: is a Git LFS pointer .* 808 bytes",
    "Wiscarce__gemma3-logo-homework__adapter": "adapter_model.safetensors: is a Git LFS pointer .* 15220968 bytes",
    "anirudh-ak__peft-gpt2__model--lora_model": Read(12, 8, 1, ("score",), "gpt2"),
    "arshiaanjum__faq-classifier-distilbert-lora__best_model": Read(12, 8, 2, HEADS, "distilbert-base-uncased"),
    "artiguptagupta68-code__media-bias-detection__root__at-3e3bf19": Read(24, 8, 2, HEADS, "distilbert-base-uncased"),
    "derived__null-base__bert-mini-arabic": Read(4, 4, 8, ("classifier",), None, "peft", ("base_model_name_or_path is empty",)),
    "elisagdelope__ESM2-bindingsites__root__at-006a182": "adapter_model.bin: is a Git LFS pointer .* 307151 bytes",
    "hitoshikumagai__Apply-Lightweight-Fine-Tuning-to-a-Foundation-Model__gpt-lora": Read(12, 1, 1, ("score",), "gpt2"),
    "joelorellana__LightweightFineTuning__gpt-lora": Read(12, 8, 4, HEADS, "distilbert-base-uncased"),
    "pakkio__gemma3-270M-finetuning-ner__outputs--gemma3-270m-gemma3_270m_balanced": Read(36, 8, 2, (), "google/gemma-3-270m"),
    "pakkio__gemma3-270M-finetuning-ner__outputs--gemma3-270m-quality-expanded": Read(36, 16, 2, (), "google/gemma-3-270m"),
    "pakkio__gemma3-270M-finetuning-ner__outputs--gemma3-entity-extraction-augmented-20ep-places": Read(
        36, 8, 2, (), "google/gemma-3-270m"
    ),
    "pakkio__gemma3-270M-finetuning-ner__outputs--gemma3-robust-training": Read(36, 16, 2, (), "google/gemma-3-270m"),
    "parikshit-06__domain-skeleton-gpt2__adapters--legal": Read(36, 8, 2, (), "gpt2"),
    "parikshit-06__domain-skeleton-gpt2__adapters--medical": Read(36, 8, 2, (), "gpt2"),
    "phuongsky__lora-gpt2-pipeline__outputs": Read(6, 8, 4, (), "distilgpt2"),
    "vykhvan__fine-tuning-foundation-model__bert-lora": Read(24, 8, 1, ("classifier",), "google-bert/bert-base-uncased"),
    "wenlianghuang__huggingface_ex__dbu-lora-tc--checkpoint-1000": Read(6, 4, 8, HEADS, "distilbert-base-uncased"),
    **{
        f"zmousa__llm-lab__asafaya--bert-mini-arabic-lora-text-classification--checkpoint-{step}": Read(
            4, 4, 8, ("classifier",), "asafaya/bert-mini-arabic"
        )
        for step in (11750, 117500, 47000, 82250)
    },
    "zouhe0__LLM-Homework__adapter": Read(72, 4, 4, (), "D:\\DeepLearning\\绘图素材\\logo-lora-project\\gemma3-270m"),
}


def test_the_table_names_every_folder(real_inputs: Path) -> None:
    assert {path.name for path in (real_inputs / "adapters").iterdir() if path.is_dir()} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_each_is_read_right_or_refused_for_its_reason(real_inputs: Path, name: str) -> None:
    source = resolve(name, real_inputs / "adapters")
    expected = TABLE[name]
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected) as caught:
            read_adapter(source, label="it")
        assert caught.value.hint
        return
    adapter = read_adapter(source, label="it")
    assert adapter.layout == expected.layout
    assert len(adapter.sites) == expected.sites
    assert {site.rank for site in adapter.sites.values()} == {expected.rank}
    assert {site.scale for site in adapter.sites.values()} == {expected.scale}
    assert {name.rpartition(".")[0] for name in adapter.extras} == set(expected.heads)
    assert {extra.kind for extra in adapter.extras.values()} <= {"saved"}
    assert adapter.base == expected.base
    assert len(adapter.notes) == len(expected.notes)
    assert all(any(part in note for note in adapter.notes) for part in expected.notes)
    for site in adapter.sites.values():
        a, b = site.read()
        assert a.shape == (site.rank, site.d_in)
        assert b.shape == (site.d_out, site.rank)


GROUPS = {
    "distilbert": (("Phiziics", "wenlianghuang"), ()),
    "all distilbert": (("Tashu014", "arshiaanjum", "artigupta", "joelorellana", "Phiziics", "wenlianghuang"), ()),
    "gpt2": (
        ("parikshit-06__domain-skeleton-gpt2__adapters--legal", "parikshit-06__domain-skeleton-gpt2__adapters--medical"),
        (),
    ),
    "bert-base": (("Hareshjethani", "T-Sharif", "vykhvan"), ("taken as the same base: bert-base-uncased, google-bert/",)),
    "null base": (("zmousa", "derived__null-base"), ()),
    "sam": (("MathieuNlp__Sam_LoRA__lora_weights--lora_rank2", "MathieuNlp__Sam_LoRA__lora_weights--lora_rank4"), ()),
    "gemma": (("pakkio", "zouhe0"), ("name different bases",)),
}


def named(place: Path, start: str) -> str:
    return next(path.name for path in sorted(place.iterdir()) if path.name.startswith(start))


@pytest.mark.parametrize(("starts", "remarks"), GROUPS.values(), ids=GROUPS.keys())
def test_groups_that_belong_together(real_inputs: Path, starts: tuple[str, ...], remarks: tuple[str, ...]) -> None:
    place = real_inputs / "adapters"
    adapters = [read_adapter(resolve(named(place, start), place), label=start) for start in starts]
    aligned, notes = align(adapters)
    assert [list(a.sites) for a in aligned] == [list(a.sites) for a in adapters]
    assert len(notes) == len(remarks)
    assert all(part in note for part, note in zip(remarks, notes, strict=True))


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (("Tashu014", "parikshit-06"), "inputs share no module: .*q_lin.*c_attn|inputs share no module: .*c_attn.*q_lin"),
        (("zmousa", "T-Sharif"), r"\[256, 256\] in zmousa and \[768, 768\] in T-Sharif.*different base models"),
        (("MathieuNlp", "Tashu014"), "layout numbered"),
    ],
)
def test_groups_that_do_not(real_inputs: Path, starts: tuple[str, ...], message: str) -> None:
    place = real_inputs / "adapters"
    adapters = [read_adapter(resolve(named(place, start), place), label=start) for start in starts]
    with pytest.raises(InputError, match=message):
        align(adapters)

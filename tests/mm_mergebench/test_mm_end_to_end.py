"""On a tiny random LLaVA: merged, asked, killed, resumed, scored, tabulated; batches answer as single questions do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mm_mergebench.candidates import read
from mm_mergebench.command import main
from mm_mergebench.llava import Llava, add_adapter
from mm_mergebench.questions import Question, read_questions
from mm_mergebench.tasks import TASKS, choose_tasks
from mm_samples import ITEMS, ROOT, write_adapter, write_adapters, write_base, write_data

from robustmerge_kit.errors import InputError

COUNT = sum(map(len, ITEMS.values()))
SEEN = sum(len(ITEMS[task.name]) for task in TASKS if task.seen)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("mm")
    write_base(place / "base")
    write_adapters(place / "adapters")
    write_data(place / "data")
    return place


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """A random model never stops by itself, and METEOR's Java program takes seconds to start."""
    generate = Llava.answer
    patch.setattr(Llava, "answer", lambda self, questions, prepared, new_tokens: generate(self, questions, prepared, 8))
    patch.setattr("mm_mergebench.captions.shutil.which", lambda name: None)


def flags(place: Path, out: Path, *more: str) -> list[str]:
    given = {"--base": place / "base", "--data": place / "data", "--adapters": place / "adapters", "--out": out}
    return [*(str(part) for pair in given.items() for part in pair), "--device", "cpu", "--quiet", *more]


def answers(out: Path) -> dict[str, list[str]]:
    """The answers of all files, in the order of their questions."""
    found: dict[str, list[str]] = {}
    for path in sorted((out / "answers").rglob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()][1:]
        assert len({line["position"] for line in lines}) == len(lines), "no answer twice"
        ordered = sorted(lines, key=lambda line: line["position"])
        found[str(path.relative_to(out / "answers"))] = [line["text"] for line in ordered]
    return found


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """One uninterrupted run of all rows over all tasks."""
    out = place / "whole"
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        assert main(flags(place, out)) == 0
    return out


def test_every_row_answers_every_task_and_ends_in_the_table(whole: Path) -> None:
    scores = json.loads((whole / "scores.json").read_text())["candidates"]
    assert set(scores) == {"zero-shot", "individual", "task_arithmetic", "dare", "ties", "pcb", "robustmerge"}
    counts = {name: sum(score["answered"] for score in tasks.values()) for name, tasks in scores.items()}
    assert counts.pop("individual") == SEEN
    assert set(counts.values()) == {COUNT}
    table = (whole / "tables.md").read_text()
    (ours,) = [line for line in table.splitlines() if line.startswith("| RobustMerge | ours, corrected |")]
    cells = [cell.strip() for cell in ours.split("|")[3:-1]]
    assert len(cells) == 14
    assert all(cells)
    assert "| RobustMerge | paper | 73.43 | 65.54 |" in table
    assert len({tuple(texts) for texts in (answers(whole)[f"{name}/VQAv2.jsonl"] for name in scores)}) == 7, "rows differ"


def test_a_second_run_asks_nothing(whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(whole)

    def refuse(*args: Any) -> None:
        raise AssertionError("nothing is left to ask")

    monkeypatch.setattr(Llava, "load", refuse)
    assert main(flags(place, whole)) == 0
    assert answers(whole) == before


@pytest.mark.parametrize("batch", ["1", "5"])
def test_batches_answer_as_single_questions_do(whole: Path, place: Path, tmp_path: Path, batch: str) -> None:
    assert main(flags(place, tmp_path, "--methods", "robustmerge", "--batch-size", batch)) == 0
    expected = {name: texts for name, texts in answers(whole).items() if name.startswith("robustmerge/")}
    assert answers(tmp_path) == expected


def test_padding_is_not_looked_at(place: Path) -> None:
    """Prompts of very different lengths, with and without an image, in one batch."""
    llava = Llava.load(str(place / "base"), None, "cpu", torch.float32)
    image = place / "data" / "datasets" / "VizWiz" / "val" / "1.jpg"
    texts = ["?", "Where is it? " * 9, "b" * 40, "How many? " * 30, "Why", "A. yes B. no " * 15]
    questions = [Question(i, str(i), text, image if i % 2 else None) for i, text in enumerate(texts)]
    single = [llava.answer([question], "pad", 8)[0] for question in questions]
    assert llava.answer(questions, "pad", 8) == single
    assert len(set(single)) > 3


CHILD = """
import sys, time
sys.path.insert(0, {benchmarks!r})
import torch
torch.set_num_threads(1)
from mm_mergebench.command import main
from mm_mergebench.llava import Llava
generate = Llava.answer
def answer(self, questions, preparation, new_tokens):
    time.sleep(0.05)
    return generate(self, questions, preparation, 8)
Llava.answer = answer
sys.exit(main(sys.argv[1:]))
"""


def test_killed_and_resumed_equals_uninterrupted(whole: Path, place: Path, tmp_path: Path) -> None:
    arguments = flags(place, tmp_path, "--methods", "zero-shot", "robustmerge", "--batch-size", "1")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": ""}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(benchmarks=str(ROOT / "benchmarks")), *arguments], env=environment
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "answers").rglob("*.jsonl"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    some = answers(tmp_path)
    assert 0 < sum(map(len, some.values())) < 2 * COUNT, "it was killed on the way"
    torn = max((tmp_path / "answers").rglob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    with torn.open("ab") as file:
        file.write(b'{"position": 1, "te')
    assert main(arguments) == 0
    expected = {name: texts for name, texts in answers(whole).items() if name.split("/")[0] in ("zero-shot", "robustmerge")}
    assert answers(tmp_path) == expected
    scores = [json.loads((out / "scores.json").read_text())["candidates"]["robustmerge"] for out in (tmp_path, whole)]
    assert scores[0] == scores[1]


def test_other_makers_are_refused_and_restart_begins_again(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--methods", "zero-shot", "--tasks", "VQAv2")
    assert main(flags(place, tmp_path, *few)) == 0
    assert main(flags(place, tmp_path, *few, "--preprocessing", "pad")) == 3
    assert "images was 'crop', is 'pad'" in capsys.readouterr().err
    before = answers(tmp_path)
    assert main(flags(place, tmp_path, *few, "--preprocessing", "pad", "--restart")) == 0
    assert answers(tmp_path) != before


def test_answers_of_another_adapter_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_adapter(tmp_path / "llava_lora", 1)
    few = ("--methods", "zero-shot", "--adapter", f"mine={folder}", "--tasks", "TabMWP")
    assert main(flags(place, tmp_path / "out", *few)) == 0
    factors = torch.load(folder / "adapter_model.bin", weights_only=True)
    torch.save({name: 2 * value for name, value in factors.items()}, folder / "adapter_model.bin")
    assert main(flags(place, tmp_path / "out", *few)) == 3
    assert "its answers were made otherwise: adapter was" in capsys.readouterr().err


def test_a_limit_leaves_the_table_empty_and_says_so(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(place, tmp_path, "--methods", "zero-shot", "--tasks", "VQAv2", "--limit", "1")) == 0
    shown = capsys.readouterr().out
    assert "zero-shot, VQAv2: 1 of 2 questions answered, not in the table" in shown
    (ours,) = [line for line in shown.splitlines() if line.startswith("| Zero-shot | ours |")][:1]
    assert not ours.split("|", 3)[3].replace("|", "").strip()


def test_an_adapter_of_ones_own_is_a_row(whole: Path, place: Path, tmp_path: Path) -> None:
    merged = whole / "merged" / "llava-v1.5-7b-lora-robustmerge"
    assert main(flags(place, tmp_path, "--methods", "zero-shot", "--adapter", f"mine={merged}", "--tasks", "VQAv2")) == 0
    assert answers(tmp_path)["mine/VQAv2.jsonl"] == answers(whole)["robustmerge/VQAv2.jsonl"]


def test_a_folded_model_is_a_row(whole: Path, place: Path, tmp_path: Path) -> None:
    adapter = read(str(whole / "merged" / "llava-v1.5-7b-lora-ties"), "ties")
    folded = tmp_path / "folded"
    Llava.load(str(place / "base"), adapter, "cpu", torch.float32).model.save_pretrained(folded)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folded / name).write_bytes((place / "base" / name).read_bytes())
    more = ("--methods", "zero-shot", "--model", f"whole={folded}", "--tasks", "VQAv2")
    assert main(flags(place, tmp_path / "out", *more)) == 0
    assert answers(tmp_path / "out")["whole/VQAv2.jsonl"] == answers(whole)["ties/VQAv2.jsonl"]


def test_a_gpu_without_room_gets_half(place: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    generate = Llava.answer

    def answer(self: Llava, questions: Any, preparation: Any, new_tokens: int) -> list[str]:
        sizes.append(len(questions))
        if len(questions) > 1:
            raise torch.OutOfMemoryError
        return generate(self, questions, preparation, new_tokens)

    monkeypatch.setattr(Llava, "answer", answer)
    assert main(flags(place, tmp_path, "--methods", "zero-shot", "--tasks", "ScienceQA", "VQAv2")) == 0
    assert sizes == [3, 1, 1, 1, 1, 1]
    assert all(answers(whole)[name] == texts for name, texts in answers(tmp_path).items())


def test_check_reads_no_weights(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Llava, "load", lambda *args: pytest.fail("weights were read"))
    assert main(flags(place, tmp_path / "out", "--check")) == 0
    assert not (tmp_path / "out").exists()
    assert "ScienceQA: 3 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--methods", "tie"], 2, "--methods tie: no such method"),
        (["--tasks", "VQA"], 2, "--tasks VQA: no such task"),
        (["--model", "x=nowhere/at/all"], 3, "nowhere/at/all"),
        (["--adapter", "x"], 2, "write LABEL=FOLDER"),
        (["--adapter", "mine=."], 3, "adapter_config.json is missing"),
        (["--base", "nowhere/at/all"], 3, "nowhere/at/all"),
        (["--data", "nowhere"], 3, "no questions of ScienceQA"),
        (["--limit", "0"], 2, "at least 1"),
        (["--device", "tpu"], 2, "--device tpu"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, said: str
) -> None:
    assert main(flags(place, tmp_path / "out", *more)) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the adapter in the model -----------------------------------------------------------------------------------------


def test_the_adapter_is_added_to_the_weights_and_the_projector_replaced(place: Path) -> None:
    adapter = read(str(place / "adapters" / "LLaVA_7B_lora_r16_REC"), "REC")
    before = Llava.load(str(place / "base"), None, "cpu", torch.float32).model.state_dict()
    after = Llava.load(str(place / "base"), adapter, "cpu", torch.float32).model.state_dict()
    factors = torch.load(place / "adapters" / "LLaVA_7B_lora_r16_REC" / "adapter_model.bin", weights_only=True)
    site = "base_model.model.model.layers.1.mlp.down_proj"
    delta = 2.0 * factors[f"{site}.lora_B.weight"].double() @ factors[f"{site}.lora_A.weight"].double()
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    assert torch.allclose(after[name].double(), before[name].double() + delta, atol=1e-6)
    projector = torch.load(place / "adapters" / "LLaVA_7B_lora_r16_REC" / "non_lora_trainables.bin", weights_only=True)
    stored = projector["base_model.model.model.mm_projector.2.weight"].float()
    assert torch.equal(after["model.multi_modal_projector.linear_2.weight"], stored)
    same = [key for key in before if torch.equal(before[key], after[key])]
    assert {key for key in before if key not in same and "vision_tower" in key} == set()
    assert len(before) - len(same) == 14 + 4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_agrees(place: Path) -> None:
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    folder = place / "adapters" / "LLaVA_7B_lora_r16_REC"
    ours = Llava.load(str(place / "base"), read(str(folder), "REC"), "cpu", torch.float32).model
    model = LlavaForConditionalGeneration.from_pretrained(place / "base")
    renamed = place / "peft"
    renamed.mkdir()
    factors = torch.load(folder / "adapter_model.bin", weights_only=True)
    torch.save(
        {key.replace("model.layers", "model.language_model.layers"): v for key, v in factors.items()},
        renamed / "adapter_model.bin",
    )
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"] = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    (renamed / "adapter_config.json").write_text(json.dumps(settings))
    merged = PeftModel.from_pretrained(model, renamed).merge_and_unload().state_dict()
    again = Llava.load(str(place / "base"), read(str(renamed), "REC"), "cpu", torch.float32).model.state_dict()
    for name, weight in ours.state_dict().items():
        if "multi_modal_projector" not in name:
            assert torch.equal(weight, again[name]), name
        if "multi_modal_projector" not in name:
            assert torch.allclose(weight, merged[name], atol=1e-6), name


def test_an_adapter_of_another_model_changes_nothing(place: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "llava_lora", 1)
    path = folder / "adapter_model.bin"
    factors = torch.load(path, weights_only=True)
    torch.save({key.replace("layers.1", "layers.7"): value for key, value in factors.items()}, path)
    model = Llava.load(str(place / "base"), None, "cpu", torch.float32).model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(InputError, match=r"the base has no model\.layers\.7"):
        add_adapter(model, read(str(folder), "other"))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


# --- the prompt -------------------------------------------------------------------------------------------------------


def test_prompts_are_vicunas_and_the_text_is_tokenized_in_two_pieces(place: Path) -> None:
    llava = Llava.load(str(place / "base"), None, "cpu", torch.float32)
    with_image, without = read_questions(choose_tasks(["ScienceQA"])[0], place / "data")[:2]
    head = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        "polite answers to the user's questions. USER: "
    )
    tokens = llava.tokens(with_image)
    assert llava.tokenizer.decode(tokens) == f"<s>{head}{'<image>' * 4}\nWhich?\nA. one\nB. two ASSISTANT:"
    assert tokens.count(llava.model.config.image_token_id) == llava.image_tokens == 4
    assert tokens.count(0) == 1
    assert llava.tokenizer.decode(llava.tokens(without)) == f"<s>{head}Without an image?\nA. yes\nB. no ASSISTANT:"


def test_greedy_answers_equal_a_plain_loop(place: Path) -> None:
    llava = Llava.load(str(place / "base"), None, "cpu", torch.float32)
    question = Question(0, "x", "Short?", None)
    tokens = llava.tokens(question)
    start = len(tokens)
    for _ in range(8):
        with torch.inference_mode():
            tokens.append(int(llava.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == 1:
            break
    assert llava.answer([question], "pad", 8) == [llava.tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()]

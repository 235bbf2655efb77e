"""The published files: both layouts, what is asked, references, images; every mistake is told with its place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mm_mergebench.answers import AnswerFile, read_answers
from mm_mergebench.images import Preprocessing, open_image, pad_to_square
from mm_mergebench.questions import IMAGENET_CHOICES, Question, read_questions
from mm_mergebench.scores import score_task
from mm_mergebench.tasks import TASKS, Task, choose_tasks
from mm_samples import ITEMS, write_data
from PIL import Image

from robustmerge_kit.errors import InputError, OutputError, RmkitError, UsageError

TASK = {task.name: task for task in TASKS}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_both_layouts_hold_the_same_questions(task: Task, data: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "published", published=True)
    ours, theirs = (
        [(q.id, q.text, q.answers, q.box, q.captions) for q in read_questions(task, place)] for place in (data, other)
    )
    assert ours == theirs
    assert len(ours) == len(ITEMS[task.name])


def test_what_is_asked(data: Path) -> None:
    text = {task.name: [question.text for question in read_questions(task, data)] for task in TASKS}
    assert text["ScienceQA"][0] == "Which?\nA. one\nB. two"
    assert text["ImageNet"][0] == f"What is it?\n{IMAGENET_CHOICES}"
    assert IMAGENET_CHOICES.startswith("Choose an answer from the choices below: Doormat, Pomeranian, ")
    assert IMAGENET_CHOICES.endswith(", Lemon, Bernese mountain dog.")
    assert IMAGENET_CHOICES.count(", ") == 99
    assert text["VQAv2"] == ["Where?\nIn a word.", "Who?\nIn a word."]


def test_images_may_lie_elsewhere_and_may_be_absent_from_a_question(data: Path, tmp_path: Path) -> None:
    (data / "datasets").rename(tmp_path / "pictures")
    with pytest.raises(InputError, match=r"its image \./ScienceQA/test/4/image\.png is not under"):
        read_questions(TASK["ScienceQA"], data)
    found = read_questions(TASK["ScienceQA"], data, tmp_path / "pictures")
    assert [question.image is None for question in found] == [False, True, True]


def test_references_by_position_as_released_and_by_image(data: Path) -> None:
    path = data / "instructions" / "VizWiz-caption" / "val.json"
    path.write_text(json.dumps(list(reversed(ITEMS["VizWiz"]))))
    first, second = read_questions(TASK["VizWiz"], data)
    assert first.captions == ("A dog in picture 1 of VizWiz", "A small dog in picture 1 of VizWiz")
    assert first.by_image == ("A dog in picture 2 of VizWiz", "A small dog in picture 2 of VizWiz")
    assert second.by_image == first.captions


def change(key: str, value: Any = None) -> Callable[[list[dict[str, Any]]], Any]:
    def edit(items: list[dict[str, Any]]) -> Any:
        items[0].pop(key, None)
        return [{**items[0], key: value} if value is not None else items[0], *items[1:]]

    return edit


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        ("VQAv2", change("question_id"), "question 1: has no question_id"),
        ("VQAv2", change("text"), "question 1: has no text"),
        ("VQAv2", change("answer"), "question 1: has no answer"),
        ("REC", change("answer_bbox"), "has no answer_bbox of four numbers"),
        ("REC", change("answer_bbox", "[1, 2]"), "are not 4 and 2 numbers"),
        ("REC", change("size", [1]), "are not 4 and 2 numbers"),
        ("VQAv2", lambda items: [], "holds no list of questions"),
        ("VQAv2", lambda items: {"a": 1}, "holds no list of questions"),
        ("VQAv2", lambda items: ["x"], "is not an object but str"),
        ("VizWiz", lambda items: [*items, items[0]], "has no reference captions: no annotation has image_id 3"),
    ],
)
def test_mistakes_in_questions(data: Path, name: str, edit: Callable[[list[dict[str, Any]]], Any], said: str) -> None:
    path = data / "instructions" / TASK[name].folders[0] / TASK[name].questions
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(RmkitError) as caught:
        read_questions(TASK[name], data)
    assert said in str(caught.value)
    assert TASK[name].questions in str(caught.value)


def test_files_that_are_no_json_or_no_coco(data: Path) -> None:
    (data / "instructions" / "IconQA" / "val.json").write_text("[")
    with pytest.raises(InputError, match="is not JSON"):
        read_questions(TASK["IconQA"], data)
    (data / "instructions" / "VizWiz-caption" / "val_coco_type.json").write_text("{}")
    with pytest.raises(InputError, match="is not in COCO's layout"):
        read_questions(TASK["VizWiz"], data)


def test_tasks_by_name_and_group() -> None:
    assert [task.name for task in choose_tasks(["tabmwp", "REC"])] == ["REC", "TabMWP"]
    assert len(choose_tasks(["seen"])) == 8
    assert len(choose_tasks(["unseen", "AOKVQA"])) == 4
    with pytest.raises(UsageError):
        choose_tasks(["COCO"])


# --- answers ----------------------------------------------------------------------------------------------------------

ASKED = [Question(i, f"q{i}", f"what {i}?", None) for i in range(3)]
MAKER = {"model": "ties", "base": "b"}


def test_one_line_an_answer_in_the_released_form(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "task.jsonl"
    with AnswerFile(path, MAKER) as file:
        file.append(ASKED[:1], ["zero"])
        file.append(ASKED[1:], ["ön\ne", ""])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"made_by": MAKER}
    assert lines[2] == {"position": 1, "question_id": "q1", "prompt": "what 1?", "text": "ön\ne", "model_id": "ties"}
    assert read_answers(path) == (MAKER, {0: "zero", 1: "ön\ne", 2: ""})


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_is_cut_off_and_asked_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "task.jsonl"
    with AnswerFile(path, MAKER) as file:
        file.append(ASKED, ["zero", "one", "two"])
    whole = path.read_bytes()
    os.truncate(path, len(whole) - cut)
    with AnswerFile(path, MAKER) as file:
        assert list(file.texts) == [0, 1]
        file.append(ASKED[2:], ["two"])
    assert path.read_bytes() == whole


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    with AnswerFile(path, MAKER) as file:
        file.append(ASKED, ["zero", "one", "two"])
        with pytest.raises(OutputError, match="another run is writing it"):
            AnswerFile(path, MAKER)
    with pytest.raises(InputError, match="base was 'b', is 'c'"):
        AnswerFile(path, {**MAKER, "base": "c"})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[1]]))
    with pytest.raises(InputError, match="line 5 answers question 1 again"):
        AnswerFile(path, MAKER)
    path.write_bytes(lines[0] + b"{}\n")
    with pytest.raises(InputError, match="line 2 is no answer"):
        AnswerFile(path, MAKER)
    with AnswerFile(path, MAKER, restart=True) as file:
        assert file.texts == {}
        file.append(ASKED[:1], ["zero"])
    assert read_answers(path)[1] == {0: "zero"}


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_of_a_task(data: Path) -> None:
    questions = read_questions(TASK["ScienceQA"], data)
    score = score_task(TASK["ScienceQA"], questions, {0: "B", 1: "(A)", 2: "A"})
    assert score is not None
    assert (score.official, score.corrected) == (pytest.approx(100 / 3), pytest.approx(200 / 3))
    assert score.more == {"with an image": 100}
    assert score.complete
    part = score_task(TASK["ScienceQA"], questions, {1: "A"})
    assert part is not None
    assert (part.answered, part.questions, part.complete) == (1, 3, False)
    assert score_task(TASK["ScienceQA"], questions, {}) is None


def test_captions_are_scored_against_the_right_picture(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm_mergebench.captions.shutil.which", lambda name: None)
    path = data / "instructions" / "VizWiz-caption" / "val.json"
    path.write_text(json.dumps(list(reversed(ITEMS["VizWiz"]))))
    questions = read_questions(TASK["VizWiz"], data)
    score = score_task(TASK["VizWiz"], questions, {0: "a dog in picture 2 of VizWiz", 1: "a dog in picture 1 of VizWiz"})
    other = score_task(TASK["VizWiz"], questions, {0: "a dog in picture 1 of VizWiz", 1: "a dog in picture 2 of VizWiz"})
    assert score is not None
    assert other is not None
    assert score.corrected > 5 * other.corrected
    assert score.official is None
    assert "METEOR" in score.note


# --- images -----------------------------------------------------------------------------------------------------------

CLIP = Preprocessing(28, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


@pytest.mark.parametrize("size", [(40, 20), (20, 44), (28, 28), (31, 57), (300, 200)])
@pytest.mark.filterwarnings("ignore")
def test_cropped_as_transformers_does(size: tuple[int, int]) -> None:
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    values = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = Image.fromarray(values.numpy())
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_mean=list(CLIP.mean),
        image_std=list(CLIP.deviation),
    )
    expected = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
    assert torch.allclose(CLIP(image, "crop"), expected, atol=1e-5)
    padded = pad_to_square(image, tuple(int(255 * value) for value in CLIP.mean))
    expected = torch.as_tensor(processor(padded, return_tensors="pt")["pixel_values"][0])
    assert torch.allclose(CLIP(image, "pad"), expected, atol=1e-5)


def test_padding_by_hand() -> None:
    wide = pad_to_square(Image.new("RGB", (4, 1), (9, 9, 9)), (1, 2, 3))
    assert wide.size == (4, 4)
    assert [wide.getpixel((0, y)) for y in range(4)] == [(1, 2, 3), (9, 9, 9), (1, 2, 3), (1, 2, 3)]
    tall = pad_to_square(Image.new("RGB", (1, 3), (9, 9, 9)), (1, 2, 3))
    assert [tall.getpixel((x, 0)) for x in range(3)] == [(1, 2, 3), (9, 9, 9), (1, 2, 3)]


def test_settings_and_files_that_are_refused(tmp_path: Path) -> None:
    assert Preprocessing.of({"crop_size": 28, "image_mean": [0.5], "image_std": [0.5]}).side == 28
    with pytest.raises(InputError, match="not a square"):
        Preprocessing.of({"crop_size": {"height": 28, "width": 30}, "image_mean": [0.5], "image_std": [0.5]})
    (tmp_path / "x.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="not a readable image"):
        open_image(tmp_path / "x.jpg")

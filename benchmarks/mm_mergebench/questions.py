"""The published instruction files: where they lie, what a question holds, which image it shows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustmerge_kit.errors import InputError, RmkitError, raise_all

from .tasks import Task

IMAGE = "<image>"
_CHOICES = json.loads(Path(__file__).with_name("imagenet_choices.json").read_text(encoding="utf-8"))
IMAGENET_CHOICES = f"Choose an answer from the choices below: {', '.join(_CHOICES)}."
"""What the released code puts in place of the rest of every ImageNet question."""

_INSTRUCTIONS = ("instructions", "data", ".")
_GROUPS = {True: ("", "Seen_data"), False: ("", "Unseen_data")}
_IMAGES = ("datasets", "images", ".")


@dataclass(frozen=True)
class Question:
    """One question of a file. `position` counts from 0 in that file; `text` is what is asked, without the image's place.

    answers: one text, or the ten of VQA's annotators. box: (x1, y1, x2, y2) as shares of the longer side, `size` (w, h) in
    pixels. captions: references by the question's position, as released; by_image: by the file name of its image.
    """

    position: int
    id: str
    text: str
    image: Path | None
    answers: tuple[str, ...] = ()
    box: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    captions: tuple[str, ...] = ()
    by_image: tuple[str, ...] = ()


def read_questions(task: Task, data: Path, images: Path | None = None) -> list[Question]:
    """The questions of a task, in the file's order, with their references; every image is there.

    data: holds the instruction files as the released scripts expect them (instructions/IconQA/val.json) or as the data set is
    published (Seen_data/IconQA/val.json). images: what image paths are relative to; None looks for datasets/ or images/ in it.
    Raises: InputError naming the file and the question.
    """
    folder = find_folder(task, data)
    path = folder / task.questions
    items = _read_list(path)
    references = _References.read(folder / task.references) if task.references else None
    found: list[Question] = []
    errors: list[RmkitError] = []
    roots = [images] if images else [data / name for name in _IMAGES]
    for position, item in enumerate(items):
        try:
            found.append(_question(task, item, position, roots, references, f"{path}: question {position + 1}"))
        except RmkitError as error:
            errors.append(error)
            if len(errors) == 5:
                break
    raise_all(errors)
    return found


def find_folder(task: Task, data: Path) -> Path:
    """The folder with the questions of a task, under any of the names it is published by.

    Raises: InputError that names the places looked at.
    """
    places = [data / top / group / name for top in _INSTRUCTIONS for group in _GROUPS[task.seen] for name in task.folders]
    for place in places:
        if (place / task.questions).is_file():
            return place
    first, published = places[0], data / _GROUPS[task.seen][1] / task.folders[0]
    raise InputError(
        f"no questions of {task.name}: neither {first / task.questions} nor {published / task.questions} is there",
        where=str(data),
        hint="download the data set AuroraZengfh/MM-MergeBench, or leave the task out with --tasks",
    )


def ask(task: Task, text: str) -> str:
    """What is asked for a stored text, without the image's place.

    ImageNet's first line gets the released list of 100 names; ScienceQA and AOKVQA are stripped, as their script does.
    """
    if task.name == "ImageNet":
        text = f"{text.partition(chr(10))[0]}\n{IMAGENET_CHOICES}"
    if IMAGE in text or task.name in ("ScienceQA", "AOKVQA"):
        return text.replace(IMAGE, "").strip()
    return text


def _read_list(path: Path) -> list[Any]:
    items = _read_json(path)
    if not isinstance(items, list) or not items:
        raise InputError("holds no list of questions", where=str(path))
    return items


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", where=str(path), hint="download it again") from error


def _question(
    task: Task, item: Any, position: int, roots: Sequence[Path], references: _References | None, where: str
) -> Question:
    if not isinstance(item, Mapping):
        raise InputError(f"is not an object but {type(item).__name__}", where=where)
    missing = [key for key in ("question_id", "text") if key not in item]
    if missing:
        raise InputError(f"has no {missing[0]}", where=where)
    image = _image(item.get("image"), roots, where)
    question = Question(
        position, str(item["question_id"]), ask(task, str(item["text"])), image, **_reference(task, item, where)
    )
    if references is None:
        return question
    captions = references.by_number.get(position + 1, ())
    by_image = references.by_file.get(image.name if image else "", captions)
    if not captions or not by_image:
        raise InputError(f"has no reference captions: no annotation has image_id {position + 1}", where=where)
    return Question(position, question.id, question.text, image, captions=captions, by_image=by_image)


def _image(name: Any, roots: Sequence[Path], where: str) -> Path | None:
    if not name:
        return None
    for root in roots:
        path = root / str(name)
        if path.is_file():
            return path
    raise InputError(
        f"its image {name} is not under {' or '.join(str(root) for root in roots)}",
        where=where,
        hint="images are downloaded apart from the questions; name their folder with --images",
    )


def _reference(task: Task, item: Mapping[str, Any], where: str) -> dict[str, Any]:
    if task.references:
        return {}
    if task.official == "box_cut":
        try:
            box = tuple(float(part) for part in str(item["answer_bbox"]).replace("[", "").replace("]", "").split(","))
            size = tuple(float(part) for part in item["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"has no answer_bbox of four numbers and size of two: {error}", where=where) from error
        if len(box) != 4 or len(size) != 2:
            raise InputError(
                f"answer_bbox {item['answer_bbox']!r} and size {item['size']!r} are not 4 and 2 numbers", where=where
            )
        return {"box": box, "size": size}
    if "answer" not in item:
        raise InputError("has no answer", where=where)
    others = item.get("answers") or [item["answer"]]
    texts = [str(one["answer"] if isinstance(one, Mapping) else one) for one in others]
    return {"answers": (str(item["answer"]), *texts) if "answers" in item else (str(item["answer"]),)}


@dataclass(frozen=True)
class _References:
    """Captions by image_id, and by the name of the image's file."""

    by_number: Mapping[int, tuple[str, ...]]
    by_file: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> _References:
        content = _read_json(path)
        try:
            files = {int(image["id"]): Path(str(image.get("file_name", ""))).name for image in content["images"]}
            by_number: dict[int, list[str]] = defaultdict(list)
            for annotation in content["annotations"]:
                by_number[int(annotation["image_id"])].append(str(annotation["caption"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                "is not in COCO's layout: needs images with id and annotations with image_id and caption", where=str(path)
            ) from error
        by_file: dict[str, list[str]] = defaultdict(list)
        for number, name in files.items():
            if name:
                by_file[name].extend(by_number.get(number, ()))
        return cls(
            {number: tuple(captions) for number, captions in by_number.items()},
            {name: tuple(captions) for name, captions in by_file.items() if captions},
        )

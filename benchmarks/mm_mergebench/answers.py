"""The file of one model's answers to one task: one JSON line per answer, appended, never twice, whole after any kill."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from robustmerge_kit.errors import InputError, OutputError

from .questions import Question


class AnswerFile:
    """Answers by position of their question. The first line says what made them; other makers are refused.

    Lines are those of the released evaluation (question_id, prompt, text, model_id), with `position` added.
    """

    def __init__(self, path: Path, maker: Mapping[str, Any], restart: bool = False) -> None:
        """Open for appending, cut off a last line that a kill left unfinished; one process at a time.

        Raises: OutputError when another process has it open or it cannot be written; InputError when its answers were made
            otherwise.
        """
        self._path = path
        self._maker = json.loads(json.dumps(maker))
        self.texts: dict[int, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise OutputError.from_os(error, path) from error
        try:
            self._lock()
            if restart:
                self._file.truncate(0)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, questions: Sequence[Question], texts: Sequence[str]) -> None:
        """Add answers and wait until they are on the disk.

        Raises: OutputError when they cannot be written; the file then ends with the last whole answer at the next start.
        """
        lines = [
            {"position": q.position, "question_id": q.id, "prompt": q.text, "text": text, "model_id": self._maker["model"]}
            for q, text in zip(questions, texts, strict=True)
        ]
        if not self._file.tell():
            lines.insert(0, {"made_by": self._maker})
        try:
            self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError.from_os(error, self._path) from error
        self.texts.update({question.position: text for question, text in zip(questions, texts, strict=True)})

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError("another run is writing it", where=str(self._path), hint="wait for it, or use --out") from error

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        lines = content[:whole].splitlines()
        self._file.seek(0, os.SEEK_END)
        if lines:
            self._compare(_parse(lines[0], self._path, 1).get("made_by"))
        for number, line in enumerate(lines[1:], 2):
            answer = _parse(line, self._path, number)
            if answer["position"] in self.texts:
                raise InputError(f"line {number} answers question {answer['position'] + 1} again", where=str(self._path))
            self.texts[answer["position"]] = answer["text"]

    def _compare(self, maker: Any) -> None:
        if maker == self._maker:
            return
        known = maker if isinstance(maker, dict) else {}
        keys = [key for key in self._maker | known if known.get(key) != self._maker.get(key)]
        raise InputError(
            "its answers were made otherwise: "
            + "; ".join(f"{key} was {known.get(key)!r}, is {self._maker.get(key)!r}" for key in keys),
            where=str(self._path),
            hint="give another --out, or --restart to throw these answers away",
        )


def read_answers(path: Path) -> tuple[Mapping[str, Any], dict[int, str]]:
    """What made the answers of a file, and the answers by position; a line without its end is not read.

    Raises: InputError for a line that is no answer.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    answers = [_parse(line, path, number) for number, line in enumerate(lines, 1)]
    return answers[0]["made_by"] if answers else {}, {one["position"]: one["text"] for one in answers[1:]}


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    expected = {"made_by"} if number == 1 else {"position", "text"}
    if not isinstance(content, dict) or not expected <= content.keys():
        raise InputError(f"line {number} is no answer", where=str(path), hint="start over with --restart")
    return content

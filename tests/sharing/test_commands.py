"""--set and references on the command line: exit code, stdout, stderr."""

import json
from pathlib import Path

import pytest
from command_line import Call
from second_repository import make_repository
from small_adapters import write_adapter

from robustmerge_kit import git as rooms


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """x.yaml with variables, and the same in the repository second/."""
    text = "merge_method: linear\nvars: {gain: 1.0, dtype: float32}\nadapters: [a]\nparameters: {gain: <gain>}\n"
    for folder in (tmp_path, tmp_path / "second"):
        write_adapter(folder / "a", 1)
        (folder / "x.yaml").write_text(text + "output: {dtype: <dtype>, path: out/<gain>}\n")
    make_repository(tmp_path / "second")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rooms, "_OPEN", {})
    return tmp_path


LINES: dict[str, tuple[int, str]] = {
    "validate x.yaml --set gain=2": (0, "x.yaml: ok"),
    "validate x.yaml --set gian=2": (2, "error: --set gian: x.yaml has no variable 'gian'\nhint: did you mean gain?"),
    "validate x.yaml --set gain=x": (2, "--set gain: must be a number, like its default 1.0, got 'x'"),
    "validate x.yaml --set gain": (2, "error: --set gain: must be name=value\nhint: for instance --set density=0.3"),
    "validate x.yaml --set dtype=float8": (2, "error: x.yaml:5:17: output.dtype must be float32, float16 or bfloat16"),
    "plan x.yaml --set dtype=float16": (0, "out/1.0 (peft, float16"),
    "plan x.yaml out --locked": (2, "No such option"),
    "validate git+file://SECOND:x.yaml": (0, "SECOND:x.yaml: ok"),
    "plan git+file://SECOND:x.yaml --set gain=2": (0, "output: HERE/out/2.0 (peft, float32"),
    "validate git+file://SECOND:y.yaml": (2, "404: the repository has no file 'y.yaml'; recipes there may be x.yaml"),
    "validate git+file://SECOND": (2, "names no file\nhint: add it: git+file://SECOND:recipes/x.yaml"),
    "validate git+file://HERE/none:x.yaml": (2, "does not appear to be a git repository"),
    "validate http://example.org/x.yaml": (2, "only https is followed, got http"),
    "validate a:x.yaml": (2, "error: a:x.yaml: no such file"),
    "validate org/name@main": (2, "org/name@main: names no file"),
}


@pytest.mark.parametrize("line", LINES)
def test_lines(line: str, place: Path, call: Call) -> None:
    code, part = LINES[line]

    def written(text: str) -> str:
        return text.replace("SECOND", str(place / "second")).replace("HERE", str(place))

    answer = call(written(line))
    assert written(part) in answer.out + answer.err
    assert answer.code == code
    assert "Traceback" not in answer.err


def test_run_by_reference_writes_into_the_working_folder(place: Path, call: Call) -> None:
    code, out, err = call(f"run git+file://{place}/second:x.yaml --set gain=0.5 --json -q")
    assert code == 0, err
    receipt = json.loads(out)
    assert receipt["path"] == str(place / "out" / "0.5")
    assert receipt["recipe"]["variables"] == {"gain": 0.5, "dtype": "float32"}
    (file,) = receipt["recipe"]["files"]
    assert file["text"] == (place / "second" / "x.yaml").read_text()
    assert receipt["recipe"]["composed"]


def test_a_plain_recipe_is_recorded_without_its_text(place: Path, call: Call) -> None:
    (place / "plain.yaml").write_text("merge_method: linear\nadapters: [a]\n")
    code, out, err = call("run plain.yaml out --json -q")
    assert code == 0, err
    recorded = json.loads(out)["recipe"]
    assert (recorded["composed"], recorded["variables"]) == (False, {})
    (file,) = recorded["files"]
    assert (file["reference"], file["sha256"]) == ("plain.yaml", recorded["sha256"])
    assert "text" not in file
    assert (place / "out" / "rmkit_recipe.yaml").read_bytes() == (place / "plain.yaml").read_bytes()

"""What scores a merge: numbers in texts and files, commands, Python functions."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from robustmerge_kit.errors import RecipeError
from robustmerge_kit.recipe import CommandEvaluation, PythonEvaluation, Reading
from robustmerge_kit.sweep.evaluate import Command, Stopped, Subject, Unscored, last_number, read_number
from robustmerge_kit.sweep.functions import Function

NEVER = threading.Event()

TEXTS: list[tuple[str, float]] = [
    ("0.5", 0.5),
    ("accuracy: 85.3 %\n", 85.3),
    ("acc=0.9, loss=-1e-3\n", -1e-3),
    ("first 1\nthen .25\n\n", 0.25),
    ("\x1b[32m0.75\x1b[0m\n", 0.75),
    ("step7 of v2: 3.", 3.0),
    ("| acc | 0.61 |", 0.61),
    ("1,2", 2.0),
    ("+2E+3", 2000.0),
]


@pytest.mark.parametrize(("text", "number"), TEXTS)
def test_the_last_number_of_a_text(text: str, number: float) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the command printed no number"),
        ("epoch3 model_2", "the command printed no number"),
        ("0.5\nloss nan", "the command printed nan"),
        ("-inf", "the command printed -inf"),
    ],
)
def test_a_text_without_a_score(text: str, reason: str) -> None:
    with pytest.raises(Unscored, match=f"^{reason}$"):
        last_number(text)


DATA = {"results": {"task.one": {"acc,none": 0.5, "n": "7"}, "list": [1, {"x": 2}]}, "a.b": 3, "yes": True}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (["results", "task.one", "acc,none"], 0.5),
        ("results.task.one.acc,none", 0.5),
        ("results.list.1.x", 2),
        (["results", "list", 0], 1),
        ("a.b", 3),
        ("yes", "holds no number at 'yes', but true"),
        ("results.task.one.n", """holds no number at 'results.task.one.n', but "7\""""),
        ("results.missing", "holds no number at 'results.missing', but nothing"),
        (None, "holds no number at None, but {"),
    ],
)
def test_a_number_in_a_file(key: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(DATA))
    reading = Reading(file="r.json", key=key)
    if isinstance(expected, str):
        with pytest.raises(Unscored) as caught:
            read_number(reading, {}, tmp_path)
        assert expected in str(caught.value)
    else:
        assert read_number(reading, {}, tmp_path) == expected


def test_of_a_pattern_the_newest_file_counts(tmp_path: Path) -> None:
    holes = {"out": str(tmp_path / "out"), "work": str(tmp_path)}
    reading = Reading(file="{work}/**/results_*.json")
    with pytest.raises(Unscored, match="there is no such file"):
        read_number(reading, holes, tmp_path)
    for number in (2, 1, 3):
        path = tmp_path / f"deep{number}" / "model" / f"results_{number}.json"
        path.parent.mkdir(parents=True)
        path.write_text(str(number))
        os.utime(path, ns=(number * 10**9,) * 2)
    assert read_number(reading, holes, tmp_path) == 3
    assert read_number(Reading(file="{work}/deep1/model/results_1.json"), holes, tmp_path) == 1


@pytest.mark.parametrize("text", ["", "{", "[1,", "\xff"])
def test_a_file_that_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text, encoding="latin-1")
    with pytest.raises(Unscored, match="no number in"):
        read_number(Reading(file="r.json"), {}, tmp_path)


# --- commands -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    folder = tmp_path / "work" / "with blank" / "merged"
    folder.mkdir(parents=True)
    return Subject(7, {"density": 0.5, "merge_method": "ties"}, folder, tmp_path / "work", tmp_path / "log00007")


def command(code: str, place: Path, *more: str, **keys: Any) -> Command:
    return Command(CommandEvaluation(command=["{python}", "-c", code, *more], **keys), place)


def test_a_command_gets_the_folder_the_values_and_no_shell(subject: Subject, tmp_path: Path) -> None:
    code = (
        "import json, os, sys; print(sys.argv[1:], os.getcwd(), os.environ['RMKIT_TRIAL'], os.environ['RMKIT_OUT']); "
        "print(os.path.isdir(sys.argv[1]) + json.loads(os.environ['RMKIT_PARAMS'])['density'])"
    )
    assert command(code, tmp_path, "{out}", "{trial}.{work}", "$HOME; rm *").score(subject, NEVER) == 1.5
    told = subject.log.with_suffix(".out").read_text().splitlines()[0]
    assert told == f"{[str(subject.folder), f'7.{subject.work}', '$HOME; rm *']} {tmp_path} 7 {subject.folder}"


def test_a_line_is_split_before_names_are_replaced(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text("import sys; print(len(sys.argv))")
    settings = CommandEvaluation(command="{python} count.py {out} 'a b' {\"json\":1}")
    assert Command(settings, tmp_path).score(subject, NEVER) == 4


def test_a_program_beside_the_recipe(subject: Subject, tmp_path: Path) -> None:
    program = tmp_path / "score"
    program.write_text("#!/bin/sh\necho 0.125\n")
    program.chmod(0o755)
    assert Command(CommandEvaluation(command="./score {out}"), tmp_path).score(subject, NEVER) == 0.125


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print(1); sys.exit(3)", "the command ended with exit code 3"),
        ("raise ValueError('no data')", "the command ended with exit code 1: ValueError: no data"),
        ("import os; os.kill(os.getpid(), 9)", "the command was ended by signal 9"),
        ("pass", "the command printed no number"),
    ],
)
def test_a_command_that_fails(code: str, reason: str, subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(Unscored) as caught:
        command(code, tmp_path).score(subject, NEVER)
    assert str(caught.value) == reason


def test_much_output_does_not_matter(subject: Subject, tmp_path: Path) -> None:
    code = "print('9 ' * 10**6); import sys; sys.stderr.write('7 ' * 10**6); print(0.25)"
    assert command(code, tmp_path).score(subject, NEVER) == 0.25


SLEEPY = "import subprocess, sys; c = subprocess.Popen(['sleep', '600']); open(sys.argv[1], 'w').write(str(c.pid)); c.wait()"


def has_ended(pid: int) -> bool:
    """Whether a process ends: one that was killed by another may take a moment to be gone."""
    for _ in range(600):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def wait_for_text(path: Path) -> str:
    for _ in range(600):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(path)


def test_a_command_that_takes_too_long_ends_with_all_it_started(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(Unscored, match=r"^the command took more than 1 s$"):
        command(SLEEPY, tmp_path, str(tmp_path / "pid"), timeout=1.0).score(subject, NEVER)
    if (tmp_path / "pid").exists():
        assert has_ended(int(wait_for_text(tmp_path / "pid")))


def test_a_sweep_that_stops_stops_its_commands(subject: Subject, tmp_path: Path) -> None:
    stop = threading.Event()

    def soon() -> None:
        wait_for_text(tmp_path / "pid")
        stop.set()

    threading.Thread(target=soon).start()
    with pytest.raises(Stopped):
        command(SLEEPY, tmp_path, str(tmp_path / "pid")).score(subject, stop)
    assert has_ended(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("'open", "sweep.evaluate.command: cannot be split into words: No closing quotation"),
        ("  ", "sweep.evaluate.command: is empty"),
        ("{python} x.py {output}", "sweep.evaluate.command: {output} stands for nothing\nhint: there are {out}, {work}"),
        ("no-such-program-at-all {out}", "sweep.evaluate.command: there is no program 'no-such-program-at-all'\nhint:"),
        ("./absent {out}", "sweep.evaluate.command: there is no program './absent'"),
    ],
)
def test_a_command_that_cannot_run_is_refused_at_once(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Command(CommandEvaluation(command=given), tmp_path)
    assert str(caught.value).startswith(message)


# --- functions ------------------------------------------------------------------------------------------------------------

MODULE = """
import os, sys, time
calls = 0

def good(folder, params):
    global calls
    calls += 1
    print("called", calls)
    assert os.environ["RMKIT_TRIAL"] == "7"
    return params["density"] + calls + folder.is_dir()

def bad(folder, params):
    raise ValueError("no data")

def text(folder, params):
    return "a lot"

def nothing(folder, params):
    pass

def unreal(folder, params):
    return float("nan")

def slow(folder, params):
    time.sleep(600)

def dies(folder, params):
    os._exit(5)

def slow_once(folder, params):
    global calls
    if not os.path.exists("slept"):
        open("slept", "w").close()
        time.sleep(600)
    return 1

class Judge:
    @staticmethod
    def good(folder, params):
        return 2

number = 3
"""


def function(spec: str, place: Path, timeout: float | None = None) -> Function:
    (place / "scores.py").write_text(MODULE)
    (place / "more").mkdir(exist_ok=True)
    (place / "more" / "own.py").write_text("import neighbour\n\ndef score(folder, params):\n    return neighbour.VALUE\n")
    (place / "more" / "neighbour.py").write_text("VALUE = 11\n")
    return Function(PythonEvaluation(python=spec, timeout=timeout), place, place / "function.log")


def test_a_function_keeps_what_it_has_loaded(subject: Subject, tmp_path: Path) -> None:
    scorer = function("scores:good", tmp_path)
    assert [scorer.score(subject, NEVER) for _ in range(3)] == [2.5, 3.5, 4.5]
    assert subject.log.with_suffix(".out").read_text() == "called 3\n"
    scorer.close()


@pytest.mark.parametrize(("spec", "value"), [("scores:Judge.good", 2.0), ("more/own.py:score", 11.0)])
def test_where_functions_are_found(spec: str, value: float, subject: Subject, tmp_path: Path) -> None:
    scorer = function(spec, tmp_path)
    assert scorer.score(subject, NEVER) == value
    scorer.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bad", "ValueError: no data"),
        ("text", "ValueError: could not convert string to float: 'a lot'"),
        ("nothing", "TypeError: returned None, not a number"),
        ("unreal", "the function returned nan"),
        ("dies", "the function's process died, exit code 5"),
        ("slow", "the function took more than 0.5 s"),
    ],
)
def test_a_function_that_fails(name: str, reason: str, subject: Subject, tmp_path: Path) -> None:
    scorer = function(f"scores:{name}", tmp_path, timeout=0.5 if name == "slow" else None)
    with pytest.raises(Unscored) as caught:
        scorer.score(subject, NEVER)
    assert str(caught.value) == reason
    scorer.close()


def test_after_a_timeout_there_is_another_process(subject: Subject, tmp_path: Path) -> None:
    scorer = function("scores:slow_once", tmp_path, timeout=3.0)
    with pytest.raises(Unscored):
        scorer.score(subject, NEVER)
    assert scorer.score(subject, NEVER) == 1
    scorer.close()


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("absent:score", "ModuleNotFoundError: No module named 'absent'"),
        ("scores:absent", "AttributeError: module 'scores' has no attribute 'absent'"),
        ("scores:number", "TypeError: number is no function"),
        ("gone.py:score", "ModuleNotFoundError: No module named 'gone'"),
    ],
)
def test_a_function_that_is_not_there_is_refused_at_once(spec: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        function(spec, tmp_path)
    assert str(caught.value).startswith(f"sweep.evaluate.python: {spec}: {what}\nhint:")


def test_the_process_of_a_function_imports_nothing_by_itself(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "light.py").write_text(
        "import sys\nHEAVY = {'torch', 'numpy', 'optuna', 'robustmerge_kit'}\n"
        "def heavy(folder, params):\n    return len(HEAVY & set(sys.modules))\n"
    )
    scorer = function("light:heavy", tmp_path)
    assert scorer.score(subject, NEVER) == 0
    scorer.close()

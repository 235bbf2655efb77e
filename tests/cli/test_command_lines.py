"""Command lines -> exit code, stdout, stderr."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import Call
from small_adapters import read_deltas, write_adapter, write_adapters, write_recipe
from small_bases import read_weights, tensors, write_base
from torch import Tensor

from robustmerge_kit import __version__
from robustmerge_kit.cli import COMMANDS


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two adapters, good.yaml, taken/ and some wrong recipes."""
    adapters = write_adapters(tmp_path / "inputs", 2)
    write_recipe(tmp_path, adapters).rename(tmp_path / "good.yaml")
    (tmp_path / "typo.yaml").write_text(f"merge_metod: linear\nadapters: [{adapters[0]}]\n")
    (tmp_path / "seeded.yaml").write_text(f"merge_method: linear\nseed: 3\nadapters: [{adapters[0]}]\n")
    (tmp_path / "absent.yaml").write_text("merge_method: linear\nadapters: [./nowhere]\n")
    write_adapter(tmp_path / "inputs" / "short", 1, where={"model.layers.0.q_proj": (12, 10)})
    (tmp_path / "unfit.yaml").write_text(f"merge_method: linear\nadapters: [{adapters[0]}, {tmp_path / 'inputs' / 'short'}]\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED: dict[str, tuple[int, tuple[str, ...]]] = {
    "": (2, ("Usage: rmkit [OPTIONS] COMMAND",)),
    "rum good.yaml": (2, ("no such command 'rum', did you mean 'run'?",)),
    "validat good.yaml": (2, ("no such command 'validat', did you mean 'validate'?",)),
    "frobnicate": (2, ("no such command 'frobnicate'",)),
    "run": (2, ("Missing argument 'RECIPE'",)),
    "run good.yaml out extra": (2, ("unexpected extra argument (extra)",)),
    "run good.yaml out --overwite": (2, ("No such option", "--overwite", "--overwrite")),
    "run nowhere.yaml out": (2, ("nowhere.yaml", "no such file")),
    "run typo.yaml out": (2, ("typo.yaml:1:1", "merge_metod", "merge_method")),
    "run absent.yaml out": (3, ("adapters[0]: ./nowhere: no such folder", "hint:")),
    "run unfit.yaml out": (4, ("adapter 2 (short): lacks 3 of 4 sites", "missing: zero")),
    "run good.yaml taken": (5, ("taken: exists already", "hint: choose another name, or add --overwrite")),
    "run good.yaml good.yaml": (5, ("good.yaml: exists and is not a folder",)),
    "run good.yaml inputs/adapter0/out": (5, ("lie inside each other", "hint: choose an output folder outside of all inputs")),
    "run good.yaml out --device gpu": (2, ("--device gpu: no such device", "hint: auto, cpu, cuda or cuda:N")),
    "run good.yaml out --device meta": (2, ("--device meta: not supported",)),
    "run good.yaml out --device cuda:99": (2, ("--device cuda:99: this machine has", "hint: use --device cpu")),
    "run good.yaml out -j 0": (2, ("'-j'", "0 is not in the range x>=1")),
    "run good.yaml out --memory lots": (2, ("'lots' is not a size; write e.g. 512MB, 2GiB or 4096",)),
    "run good.yaml out --memory 0": (2, ("'0' must be more than 0",)),
    "run seeded.yaml out --random-seed 4": (2, ("--random-seed 4: the recipe sets seed: 3 itself",)),
    "run good.yaml out --allow-crimes": (2, ("--allow-crimes: ", "hint: see `missing:` and `allow:` in the recipe")),
    "run good.yaml out --no-safe-serialization": (2, ("--no-safe-serialization: pickled weights are not written",)),
    "run good.yaml out --unsafe-truncate-embeddings": (2, ("vocabularies are never truncated",)),
    "plan typo.yaml": (2, ("typo.yaml:1:1",)),
    "plan absent.yaml": (3, ("nowhere",)),
    "plan unfit.yaml": (4, ("lacks 3 of 4 sites",)),
    "validate unfit.yaml": (4, ("lacks 3 of 4 sites",)),
    "validate": (2, ("Missing argument 'RECIPES...'",)),
    "methods robustmerg": (2, ("robustmerg", "robustmerge")),
}


@pytest.mark.parametrize("line", REFUSED)
def test_refusals(line: str, call: Call, place: Path) -> None:
    code, parts = REFUSED[line]
    answer = call(line)
    said = answer.out + answer.err if line == "" else answer.err
    assert [part for part in parts if part not in said] == []
    assert answer.code == code
    assert line == "" or answer.out == ""
    assert "Traceback" not in answer.err
    assert not (place / "out").exists()


ACCEPTED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "run good.yaml out": (("merged 2 adapters at 4 sites into", "linear, rank 8, float32,"), ("merging:",)),
    "run good.yaml": (("good-merged",), ()),
    "run good.yaml taken --overwrite": (("merged 2 adapters",), ()),
    "run good.yaml out --device cpu -j 2 --memory 64MiB": (("merged 2 adapters",), ()),
    "run good.yaml out --no-cuda --num-threads 1": (("merged 2 adapters",), ()),
    "run good.yaml out -v": (("model.layers.1.up_proj  rank 8  kept 1.0000  rounding",), ()),
    "run good.yaml out --random-seed 4": (("merged 2 adapters",), ()),
    "run good.yaml out --lazy-unpickle": ((), ("note: --lazy-unpickle is not needed: inputs are always read lazily",)),
    "run good.yaml out --copy-tokenizer --low-cpu-memory": ((), ("note: --low-cpu-memory is",)),
    "run good.yaml out --out-shard-size 5B --write-threads 4": ((), ("note: --write-threads is",)),
    "run good.yaml out --trust-remote-code": ((), ("no code of a model is ever run",)),
    "plan good.yaml": (("linear: 2 adapters, 4 sites", "model.layers.0.q_proj", "4,4 -> 8", "output: "), ()),
    "validate good.yaml seeded.yaml": (("good.yaml: ok", "seeded.yaml: ok"), ()),
    "methods": (("robustmerge", "2502.17159", "linear"), ()),
    "methods robustmerge": (("clamp_quantile", "Source: arXiv 2502.17159"), ()),
    "schema": (('"merge_method"',), ()),
    "--version": ((f"rmkit, version {__version__}",), ()),
    "--help": (("Exit codes: 0 done", "run ", "validate "), ()),
    "run --help": (("--overwrite", "--gpu-memory"), ()),
}


@pytest.mark.parametrize("line", ACCEPTED)
def test_what_works(line: str, call: Call, place: Path) -> None:
    on_stdout, on_stderr = ACCEPTED[line]
    answer = call(line)
    assert answer.code == 0, answer.err
    assert [part for part in on_stdout if part not in answer.out] == []
    assert [part for part in on_stderr if part not in answer.err] == []
    assert "merging:" not in answer.out


@pytest.mark.parametrize("line", ["run good.yaml out", "run good.yaml out --lazy-unpickle", "validate good.yaml"])
def test_quiet_says_nothing(line: str, call: Call, place: Path) -> None:
    for flag in ("--quiet", "-q"):
        answer = call(line, flag, *(["--overwrite"] if line.startswith("run") else []))
        assert (answer.code, answer.out, answer.err) == (0, "", "")


def test_quiet_still_says_what_is_wrong(call: Call, place: Path) -> None:
    answer = call("run", "unfit.yaml", "out", "--quiet")
    assert (answer.code, answer.out) == (4, "")
    assert answer.err.startswith("error: adapter 2 (short): lacks")


JSON = {
    "run good.yaml out": 0,
    "plan good.yaml": 0,
    "validate good.yaml seeded.yaml": 0,
    "validate good.yaml typo.yaml": 2,
    "methods": 0,
    "methods robustmerge": 0,
    "schema": 0,
    "run typo.yaml out": 2,
    "run absent.yaml out": 3,
    "run unfit.yaml out": 4,
    "run good.yaml taken": 5,
    "plan unfit.yaml": 4,
    "run good.yaml out --device gpu": 2,
    "run good.yaml out --allow-crimes": 2,
    "run good.yaml out --overwite": 2,
    "run seeded.yaml out --random-seed 4": 2,
    "rum good.yaml out": 2,
    "run": 2,
}


@pytest.mark.parametrize("line", JSON)
def test_json_is_one_document_whatever_happens(line: str, call: Call, place: Path) -> None:
    answer = call(line, "--json")
    assert answer.code == JSON[line]
    document = json.loads(answer.out)
    if answer.code and not line.startswith("validate"):
        assert document["exit_code"] == answer.code
        assert all(set(error) == {"where", "what", "hint"} for error in document["errors"])
        assert document["errors"][0]["what"]


def test_json_of_a_run_is_the_receipt(call: Call, place: Path) -> None:
    answer = call("run", "good.yaml", "out", "--json", "--quiet")
    document = json.loads(answer.out)
    assert document.pop("path") == str(place / "out")
    assert document == json.loads((place / "out" / "rmkit.json").read_text())
    assert answer.err == ""


def test_json_of_a_bug(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*_: object, **__: object) -> None:
        raise ArithmeticError("seven")

    monkeypatch.setattr("robustmerge_kit.merge.gather", boom)
    answer = call("run", "good.yaml", "out", "--json")
    assert answer.code == 70
    assert json.loads(answer.out)["exit_code"] == 70
    assert "bug: ArithmeticError: seven\nhint: please report it, with the output of --debug" in answer.err
    assert "Traceback" not in answer.err
    assert "Traceback" in call("run", "good.yaml", "out", "--debug").err


def test_debug_shows_where_it_was_raised(call: Call, place: Path) -> None:
    plain, debug = call("run", "unfit.yaml", "out"), call("run", "unfit.yaml", "out", "--debug")
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert "_check_missing" in debug.err
    assert plain.code == debug.code == 4


def test_all_problems_of_a_stage_are_listed_at_once(call: Call, place: Path) -> None:
    (place / "two.yaml").write_text("merge_method: linear\nadapters: [./a, ./b]\nmissin: zero\nsead: 1\n")
    answer = call("run", "two.yaml", "out")
    assert (answer.code, answer.err.count("error: ")) == (2, 2)
    (place / "two.yaml").write_text("merge_method: linear\nadapters: [./a, ./b]\n")
    answer = call("run", "two.yaml", "out")
    assert (answer.code, answer.err.count(": no such folder")) == (3, 2)


def test_validate_goes_on_after_a_wrong_recipe_and_the_first_failure_decides(call: Call, place: Path) -> None:
    answer = call("validate", "good.yaml", "absent.yaml", "typo.yaml", "seeded.yaml")
    assert answer.code == 3
    assert answer.out.splitlines() == ["good.yaml: ok", "seeded.yaml: ok"]
    assert "nowhere" in answer.err
    assert "typo.yaml:1:1" in answer.err


def test_random_seed_is_written_into_the_receipt(call: Call, place: Path) -> None:
    assert call("run", "good.yaml", "out", "--random-seed", "11").code == 0
    assert json.loads((place / "out" / "rmkit.json").read_text())["recipe"]["seed"] == 11


def test_no_model_card_on_request(call: Call, place: Path) -> None:
    assert call("run", "good.yaml", "out", "--no-write-model-card").code == 0
    assert not (place / "out" / "README.md").exists()


def _theirs(place: Path, base: str, more: str = "") -> None:
    (place / "theirs.yaml").write_text(
        f"merge_method: task_arithmetic\nbase_model: {base}\n"
        f"models:\n- model: {base}+{place}/inputs/adapter0\n  parameters: {{weight: 0.5}}\n"
        f"- model: {base}+{place}/inputs/adapter1\n"
        f"  parameters: {{weight: 2.0}}\n"
        f"dtype: float32\n{more}"
    )


def _summed(place: Path) -> dict[str, Tensor]:
    first, second = (read_deltas(place / "inputs" / f"adapter{i}") for i in range(2))
    return {site: 0.5 * first[site] + 2 * second[site] for site in first}


def test_a_mergekit_recipe_writes_the_model_it_asks_for(call: Call, place: Path) -> None:
    before = tensors()
    _theirs(place, str(write_base(place / "tiny", before, shards=2)))
    answer = call("run", "theirs.yaml", "out", "--no-cuda")
    assert answer.code == 0, answer.err
    after = read_weights(place / "out")
    for site, delta in _summed(place).items():
        assert float((after[f"{site}.weight"].double() - before[f"{site}.weight"].double() - delta).norm()) < 1e-5


def test_a_mergekit_recipe_can_ask_for_an_adapter(call: Call, place: Path) -> None:
    _theirs(place, "org/tiny", "output: {kind: adapter}\n")
    answer = call("run", "theirs.yaml", "out", "--no-cuda")
    assert answer.code == 0, answer.err
    found = read_deltas(place / "out")
    for site, delta in _summed(place).items():
        assert float((found[site] - delta).norm()) < 1e-5


def test_every_command_has_help(call: Call, place: Path) -> None:
    for name in COMMANDS:
        answer = call(name, "--help")
        assert answer.code == 0, name
        assert "Usage: rmkit" in answer.out


# --- processes of their own -------------------------------------------------------------------------------------------

HEAVY = ("torch._C", "numpy", "huggingface_hub", "pydantic", "safetensors", "ruamel")
PROBE = """
import sys
sys.argv = ['rmkit', *{arguments!r}]
try:
    {statement}
except SystemExit:
    pass
print(sorted(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("rum",)])
def test_help_and_version_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = PROBE.format(arguments=arguments, statement="from robustmerge_kit.cli import main; main()", heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = PROBE.format(arguments=(), statement="import robustmerge_kit", heavy=HEAVY)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_are_quick(flag: str) -> None:
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "robustmerge_kit", flag], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    print(f"rmkit {flag}: {min(times):.3f} s")
    assert min(times) < 1.0


def test_each_further_recipe_validates_in_milliseconds(call: Call, place: Path) -> None:
    adapters = write_adapters(place / "more", 8)
    recipes: list[Path] = []
    for i in range(12):
        write_recipe(place, adapters, "robustmerge", seed=i).rename(place / f"many{i}.yaml")
        recipes.append(place / f"many{i}.yaml")
    call("validate", recipes[0])
    start = time.perf_counter()
    assert call("validate", *recipes).code == 0
    each = (time.perf_counter() - start) / len(recipes)
    print(f"validate: {1000 * each:.1f} ms for each further recipe")
    assert each < 0.06


def test_a_reader_that_goes_away_ends_the_command_like_other_programs() -> None:
    command = [sys.executable, "-m", "robustmerge_kit", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == (b"", 128 + signal.SIGPIPE)


def test_a_process_ends_with_its_handlers_but_without_taking_everything_apart() -> None:
    code = """
import atexit, sys
from robustmerge_kit import cli

class Large:
    def __del__(self):
        print("taken apart")

def main():
    atexit.register(print, "handlers ran")
    print("printed")
    sys.exit(3)

large, cli.main = Large(), main
cli.process()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "printed\nhandlers ran\n", "")

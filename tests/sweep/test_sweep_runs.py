"""Whole sweeps, as a user runs them: what they find, write, say and survive."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from children import command, end, start
from command_line import Call
from small_adapters import content, write_adapters
from small_bases import tensors, write_base
from sweeps import killed_at, scores, write_sweep

from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.report import pictures
from robustmerge_kit.sweep import plot

COMMAND = "{python} -I score.py {out}"

SCORE = """
import json, os, sys
from pathlib import Path
weights = (Path(sys.argv[1]) / "adapter_model.safetensors").read_bytes()
config = json.loads((Path(sys.argv[1]) / "adapter_config.json").read_text())
print("looked at", len(weights), "bytes")
params = json.loads(os.environ["RMKIT_PARAMS"])
print(config["r"] - abs(params["gain"] - 1))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in. Pictures cost more than a sweep of these adapters: those tests that look at one ask for it."""
    monkeypatch.chdir(tmp_path)
    for module in (pictures, plot):
        monkeypatch.setattr(module, "can_draw", lambda: False)
    (tmp_path / "score.py").write_text(SCORE)
    return tmp_path


def swept(call: Call, recipe: Path, *more: object, code: int = 0) -> dict[str, Any]:
    answer = call("sweep", recipe, "--json", "--quiet", *more)
    assert answer.code == code, answer.err
    assert answer.err == ""
    return json.loads(answer.out)


def test_a_command_chooses_and_the_best_recipe_runs(call: Call, place: Path) -> None:
    recipe = write_sweep(place, evaluate={"command": COMMAND})
    answer = call("sweep", recipe, "--keep", "--num-threads", 1)
    assert answer.code == 0, answer.err
    assert "6 trials; study:" in answer.err
    assert len(re.findall(r"^trial \d: ", answer.err, re.MULTILINE)) == 6
    for part in ("trial", "score", "merge_method", "6 trials scored; all trials are done", "best: trial", "r.best.yaml"):
        assert part in answer.out
    document = swept(call, recipe)
    best = document["best"]
    assert best["score"] == max(trial["score"] for trial in document["trials"])
    for trial in document["trials"]:
        assert trial["score"] == pytest.approx(trial["params"]["output.rank"] - abs(trial["params"]["gain"] - 1))
        assert (place / "r.sweep" / "logs" / f"{trial['trial']:05}.out").read_text().startswith("looked at")
    assert call("run", "r.best.yaml", "merged", "--quiet").code == 0
    kept = place / "r.sweep" / "trials" / f"{best['trial']:05}" / "r-merged"
    ran = content(place / "merged")
    assert {name: ran[name] for name in content(kept)} == content(kept)
    assert (
        (place / "r.best.yaml")
        .read_text()
        .startswith(f"# The best recipe that the sweep of r has found: trial {best['trial']}")
    )
    assert load_recipe(place / "r.best.yaml").sweep is None


def test_merged_folders_are_removed_unless_kept(call: Call, place: Path) -> None:
    swept(call, write_sweep(place, evaluate={"command": COMMAND}, trials=2))
    assert list((place / "r.sweep" / "trials").iterdir()) == []


def test_a_function_scores_as_the_command_does(call: Call, place: Path) -> None:
    (place / "own.py").write_text(
        "import json\ndef score(folder, params):\n"
        "    return json.loads((folder / 'adapter_config.json').read_text())['r'] - abs(params['gain'] - 1)\n"
    )
    by_command = swept(call, write_sweep(place, "c", evaluate={"command": COMMAND}, trials=3))
    by_function = swept(call, write_sweep(place, "f", evaluate={"python": "own.py:score"}, trials=3))
    assert scores(by_command) == scores(by_function)


@pytest.mark.parametrize("sampler", [pytest.param("grid", marks=pytest.mark.slow), "random"])
def test_trials_side_by_side_find_the_same(sampler: str, call: Call, place: Path) -> None:
    search = {"merge_method": ["ties", "linear"], "density": {"low": 0.2, "high": 0.8, "step": 0.3}, "gain": [0.5, 1.0]}
    keys: dict[str, Any] = {"search": search, "sampler": sampler, "trials": None if sampler == "grid" else 5}
    one = swept(call, write_sweep(place, "one", **keys))
    three = swept(call, write_sweep(place, "three", **keys), "-j", 3)
    assert scores(one) == scores(three)
    assert len(one["trials"]) == (8 if sampler == "grid" else 5)
    texts = [(place / f"{name}.best.yaml").read_text().replace(name, "x") for name in ("one", "three")]
    assert texts[0] == texts[1]


def test_failed_trials_have_reasons_and_others_go_on(call: Call, place: Path) -> None:
    (place / "own.py").write_text("def score(folder, params):\n    return 1 / params['seed']\n")
    search = {"seed": [0, 1, 2], "merge_method": ["ties", "svd"]}
    recipe = write_sweep(place, search=search, sampler="grid", trials=None, evaluate={"python": "own.py:score"}, recipe={})
    document = swept(call, recipe)
    reasons = {(t["params"]["seed"], t["params"]["merge_method"]): t.get("reason") for t in document["trials"]}
    assert reasons[0, "ties"] == "ZeroDivisionError: division by zero"
    assert reasons[1, "ties"] is None
    assert reasons[1, "svd"].endswith("svd needs output.rank")
    assert document["best"]["score"] == 1.0
    assert "ZeroDivisionError" in (place / "r.sweep" / "logs" / "00000.out").read_text()
    answer = call("sweep", recipe)
    assert "3 failed, the first of them trial 1: " in answer.out
    assert "1 failed, the first of them trial 0: ZeroDivisionError: division by zero" in answer.out


def test_no_score_at_all_is_a_no(call: Call, place: Path) -> None:
    recipe = write_sweep(place, evaluate={"command": ["{python}", "-c", "print()"]}, trials=2)
    document = swept(call, recipe, code=1)
    assert (document["best"], {trial["reason"] for trial in document["trials"]}) == (None, {"the command printed no number"})
    assert not (place / "r.best.yaml").exists()
    assert "0 trials scored" in call("sweep", recipe).out


def test_patience_ends_it(call: Call, place: Path) -> None:
    (place / "own.py").write_text("def score(folder, params):\n    return -1.0\n")
    keys: dict[str, Any] = {"evaluate": {"python": "own.py:score"}, "trials": 20}
    document = swept(call, write_sweep(place, patience=2, **keys))
    assert (len(document["trials"]), document["why"]) == (3, "2 trials in a row were no better")
    assert len(swept(call, write_sweep(place, patience=4, **keys))["trials"]) == 5


def test_less_is_better_where_the_recipe_says_so(call: Call, place: Path) -> None:
    document = swept(call, write_sweep(place, direction="minimize", trials=3))
    assert document["best"]["score"] == min(trial["score"] for trial in document["trials"])


def test_models_are_folded(call: Call, place: Path) -> None:
    write_base(place / "base", tensors())
    (place / "own.py").write_text("def score(folder, params):\n    return (folder / 'model.safetensors').stat().st_size\n")
    recipe = write_sweep(
        place,
        search={"gain": [0.5, 1.0]},
        sampler="grid",
        recipe={"base_model": "base", "output": {"kind": "model"}},
        evaluate={"python": "own.py:score"},
    )
    document = swept(call, recipe)
    assert [trial["state"] for trial in document["trials"]] == ["complete"] * 2


# --- pictures -------------------------------------------------------------------------------------------------------------


def test_the_picture(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    for module in (pictures, plot):
        monkeypatch.setattr(module, "can_draw", lambda: True)
    recipe = write_sweep(place, trials=2)
    assert Path(swept(call, recipe)["plot"]).read_bytes().startswith(b"\x89PNG")
    assert swept(call, recipe, "--plot", "p.svg")["plot"] == "p.svg"
    text = (place / "p.svg").read_text()
    assert "<svg" in text


def test_a_picture_of_an_unknown_kind_is_refused_before_anything_runs(call: Call, place: Path) -> None:
    answer = call("sweep", write_sweep(place), "--plot", "p.bmp")
    assert answer.code == 2
    assert "let the name end in .png, .svg, .pdf" in answer.err
    assert not (place / "r.sweep").exists()


# --- refusals -------------------------------------------------------------------------------------------------------------


def test_other_commands_know_a_sweep(call: Call, place: Path) -> None:
    recipe = write_sweep(place)
    answer = call("run", recipe, "out")
    assert answer.code == 2
    assert "r holds a sweep, which is many merges\nhint: `rmkit sweep` runs it" in answer.err
    assert not (place / "out").exists()
    assert call("validate", recipe, "--quiet").code == 0
    assert call("plan", recipe, "--quiet").code == 0


@pytest.mark.slow
def test_a_batch_knows_a_sweep(call: Call, place: Path) -> None:
    assert call("batch", write_sweep(place), "--quiet").code == 1
    assert not list(place.glob("*-merged"))


def test_a_recipe_without_a_sweep(call: Call, place: Path) -> None:
    write_adapters(place / "inputs", 2)
    (place / "r.yaml").write_text("merge_method: linear\nadapters: [inputs/adapter0]\n")
    answer = call("sweep r.yaml")
    assert answer.code == 2
    assert "r: there is no sweep in it\nhint: add sweep: {search:" in answer.err


def test_what_nothing_can_merge_is_refused_before_anything_runs(call: Call, place: Path) -> None:
    recipe = write_sweep(place, recipe={"merge_method": "ties", "missing": "error"}, search={"density": [0.1]})
    shutil.rmtree(place / "inputs" / "adapter1")
    answer = call("sweep", recipe)
    assert answer.code == 3
    assert "adapters[1]" in answer.err
    assert not (place / "r.sweep").exists()


def test_without_optuna_the_way_to_get_it_is_told(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "optuna" else real(name, *more))
    answer = call("sweep", write_sweep(place))
    assert answer.code == 2
    assert 'hint: pip install "robustmerge-kit[sweep]"' in answer.err


def test_somebody_elses_best_recipe_is_not_replaced(call: Call, place: Path) -> None:
    recipe = write_sweep(place, trials=1)
    (place / "r.best.yaml").write_text("mine")
    answer = call("sweep", recipe)
    assert answer.code == 5
    assert "r.best.yaml: exists, and is not what this sweep wrote" in answer.err
    assert (place / "r.best.yaml").read_text() == "mine"
    assert swept(call, recipe, "--overwrite")["best"] is not None
    assert swept(call, recipe)["best"] is not None


def test_a_changed_recipe_or_input_is_another_sweep(call: Call, place: Path) -> None:
    swept(call, write_sweep(place, trials=1))
    assert len(swept(call, write_sweep(place, trials=2, patience=9))["trials"]) == 2
    answer = call("sweep", write_sweep(place, trials=2, recipe={"seed": 4}))
    assert answer.code == 5
    assert "holds the trials of another sweep: the recipe differs" in answer.err
    shutil.rmtree(place / "inputs")
    write_adapters(place / "inputs", 3, r=3)
    recipe = write_sweep(place, trials=2)
    assert "the adapters' files differs" in call("sweep", recipe).err
    found = swept(call, recipe, "--restart")
    assert (len(found["trials"]), load_recipe(place / "r.best.yaml").seed) == (2, 0)


def test_one_study_is_one_sweeps_at_a_time(call: Call, place: Path) -> None:
    from robustmerge_kit.batch.claim import claim

    with claim(place / "r.sweep"):
        answer = call("sweep", write_sweep(place))
    assert answer.code == 5
    assert "another sweep is running there" in answer.err


# --- interruptions --------------------------------------------------------------------------------------------------------


def killed_until_done(place: Path, arguments: list[str], moments: list[int]) -> dict[str, Any]:
    """Run a sweep again and again, each time killed a little later, until it ends by itself."""
    output = place / "out.json"
    for moment in moments:
        code = end(start(killed_at, moment, arguments, str(output)), 120)
        if code != -signal.SIGKILL:
            break
    else:
        assert end(start(killed_at, -1, arguments, str(output)), 120) == 0
    return json.loads(output.read_text())


@pytest.mark.parametrize(
    ("evaluate", "moments"),
    [
        pytest.param({"python": "own.py:score"}, [9, 22], id="twice"),
        pytest.param({"python": "own.py:score"}, [2, 16, 25], id="function", marks=pytest.mark.slow),
        pytest.param("diagnostics", [0, 3, 9, 12, 21, 22, 29], id="diagnostics", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_that_is_killed_again_and_again_equals_one_that_was_not(
    evaluate: Any, moments: list[int], call: Call, place: Path
) -> None:
    (place / "own.py").write_text("def score(folder, params):\n    return -abs(params['gain'] - 1)\n")
    calm, rough = place / "calm", place / "rough"
    for folder in (calm, rough):
        folder.mkdir()
        shutil.copy(place / "own.py", folder)
        write_sweep(folder, evaluate=evaluate, trials=5)
    whole = swept(call, calm / "r.yaml")
    parts = killed_until_done(rough, ["sweep", str(rough / "r.yaml"), "--json", "--quiet"], moments)
    assert scores(parts) == scores(whole)
    assert (rough / "r.best.yaml").read_bytes() == (calm / "r.best.yaml").read_bytes()
    assert not [
        path for path in rough.rglob(".*") if path.name != ".part" and "rmkit" in path.name and "claim" not in path.name
    ]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_signal_within_a_trial_leaves_what_was_done(number: int, code: int, call: Call, place: Path) -> None:
    (place / "slow.py").write_text(
        "import os, sys, time\nfrom pathlib import Path\n"
        "if os.environ['RMKIT_TRIAL'] == '2' and not Path('reached').exists():\n"
        "    Path('reached').write_text(str(os.getpid()))\n    time.sleep(600)\n"
        "print(len(os.environ['RMKIT_PARAMS']))\n"
    )
    recipe = write_sweep(place, evaluate={"command": "{python} slow.py {out}"}, trials=4, sampler="random")
    process = start(command, ["sweep", str(recipe)], str(place / "said"))
    for _ in range(1200):
        if (place / "reached").exists() and (place / "reached").read_text():
            break
        assert process.exitcode is None, (place / "said").read_text()
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, number)
    found = end(process, 60)
    err = (place / "said").read_text()
    assert found == code, err
    evaluation = int((place / "reached").read_text())
    if number == signal.SIGKILL:
        os.kill(evaluation, signal.SIGKILL)
    else:
        assert "2 trials are kept: the same command goes on after them" in err
        assert not Path(f"/proc/{evaluation}").exists()
    document = swept(call, recipe)
    assert [trial["state"] for trial in document["trials"]] == ["complete"] * 4
    assert document["trials"] != []
    again = swept(call, write_sweep(place, "calm", evaluate={"command": "{python} slow.py {out}"}, trials=4, sampler="random"))
    assert scores(again) == scores(document)

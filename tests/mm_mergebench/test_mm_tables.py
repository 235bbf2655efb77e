"""The paper's figures are those of the paper, ours stand next to them and nowhere else; POPE, MME and MMBench by lmms-eval."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mm_mergebench import command, general, table
from mm_mergebench.general import collect, command_line
from mm_mergebench.table import PAPER, tables
from mm_mergebench.tasks import TASKS
from mm_samples import ROOT, write_adapters, write_base

from robustmerge_kit.errors import InputError

FIGURES = json.loads(PAPER.read_text())


def score(task: str, official: float | None, corrected: float, answered: int = 10, note: str = "") -> dict[str, Any]:
    more = {"BLEU-1": 12.0} if task == "VizWiz" and official is not None else {}
    given = {"official": official, "corrected": corrected, "answered": answered, "questions": 10, "more": more, "note": note}
    return {"task": task, **given}


def write_scores(out: Path, **candidates: dict[str, Any]) -> Path:
    out.mkdir(exist_ok=True)
    (out / "scores.json").write_text(json.dumps({"candidates": candidates}))
    return out


def row(text: str, name: str, figures: str, table: int = 2) -> list[str]:
    part = text.split("## Table 3")[table - 2]
    (line,) = [line for line in part.splitlines() if line.startswith(f"| {name} | {figures} |")]
    return [cell.strip() for cell in line.split("|")[3:-1]]


def test_the_papers_means_are_the_means_of_its_figures() -> None:
    """RobustMerge's own seen mean is 57.33 where its entries average 57.41; all others agree."""
    for name, figures in FIGURES["table2"].items():
        for group, wanted in (("seen", True), ("unseen", False)):
            values = [figures[task.name] for task in TASKS if task.seen is wanted and task.name in figures]
            if values and (name, group) != ("robustmerge", "seen"):
                assert sum(values) / len(values) == pytest.approx(figures[group], abs=0.011), (name, group)
    assert FIGURES["table2"]["robustmerge"]["seen"] == 57.33


def test_nothing_run_nothing_invented(tmp_path: Path) -> None:
    text = tables(tmp_path)
    assert row(text, "TIES", "paper")[:3] == ["71.49", "55.88", "66.73"]
    assert row(text, "Individual", "paper")[8:] == ["69.23", "", "", "", "", ""]
    for name in ("Zero-shot", "Multi-task", "RobustMerge"):
        assert not any(row(text, name, "ours") + row(text, name, "ours, corrected"))
        assert row(text, name, "ours", 3) == ["", "", ""]
    assert row(text, "RobustMerge", "paper", 3) == ["87.2", "1494.9", "68.1"]


def test_ours_stand_where_they_were_run(tmp_path: Path) -> None:
    whole = {task.name: score(task.name, 50.0, 60.0) for task in TASKS if task.seen}
    some = {"VQAv2": score("VQAv2", 1.0, 2.0, answered=9), "VizWiz": score("VizWiz", None, 3.0, note="METEOR needs Java")}
    text = tables(write_scores(tmp_path, robustmerge=whole, ties=some, mine={"REC": score("REC", 7.0, 8.0)}))
    assert row(text, "RobustMerge", "ours") == ["50.00"] * 9 + [""] * 5
    assert row(text, "RobustMerge", "ours, corrected") == ["60.00"] * 9 + [""] * 5
    assert not any(row(text, "TIES", "ours"))
    assert row(text, "TIES", "ours, corrected")[5] == "3.00"
    assert row(text, "mine", "ours")[3] == "7.00"
    assert "- ties, VQAv2: 9 of 10 questions answered, not in the table (official 1.00, corrected 2.00)" in text
    assert "- VizWiz has no official figure: METEOR needs Java" in text
    assert "- robustmerge, VizWiz: BLEU-1 12.00" in text


# --- general benchmarks -----------------------------------------------------------------------------------------------


def test_the_command_line_of_lmms_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = command_line("models/ties", tmp_path)
    assert line[1:5] == ["-m", "lmms_eval", "--model", "llava_hf"]
    assert "pretrained=models/ties" in line
    assert "pope,mme,mmbench_en_dev_static" in line
    assert general.main(["--base", "b", "--adapter", "a", "--label", "ties", "--out", str(tmp_path), "--print"]) == 0
    assert f"pretrained={tmp_path}/models/ties" in capsys.readouterr().out


def test_without_lmms_eval_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general.importlib.util, "find_spec", lambda name: None)
    assert general.main(["--base", "org/base", "--label", "zero-shot", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "pretrained=org/base" in shown.out
    assert "lmms-eval is not installed here" in shown.err


def test_figures_are_collected_into_table_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = tmp_path / "general" / "ties" / "model"
    with pytest.raises(InputError, match="no results of lmms-eval"):
        collect(logs)
    logs.mkdir(parents=True)
    results = {
        "pope": {"alias": "pope", "pope_accuracy,none": 0.871, "pope_f1_score,none": 0.859},
        "mme": {"mme_cognition_score,none": 300.0, "mme_perception_score,none": 1490.5},
        "mmbench_en_dev_static": {"gpt_eval_score,none": 66.2, "submission,none": None},
    }
    (logs / "20250101_results.json").write_text(json.dumps({"results": results}))
    assert general.main(["--base", "b", "--label", "ties", "--out", str(tmp_path), "--collect"]) == 0
    assert capsys.readouterr().out == "POPE 85.9, MME 1490.5, MMBench 66.2\n"
    assert row(tables(tmp_path), "TIES", "ours", 3) == ["85.9", "1490.5", "66.2"]


LMMS = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
model = pathlib.Path(given["--model_args"].removeprefix("pretrained="))
assert (model / "config.json").is_file() and (model / "tokenizer.json").is_file(), sorted(model.iterdir())
logs = pathlib.Path(given["--output_path"])
logs.mkdir(parents=True)
(logs / "x_results.json").write_text(json.dumps({"results": {"mme": {"mme_percetion_score,none": 12.5}}}))
"""


@pytest.mark.filterwarnings("ignore")
def test_folded_launched_and_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for lmms-eval that looks at the folder it is given."""
    (tmp_path / "site" / "lmms_eval").mkdir(parents=True)
    (tmp_path / "site" / "lmms_eval" / "__init__.py").touch()
    (tmp_path / "site" / "lmms_eval" / "__main__.py").write_text(LMMS.replace('"--log_samples"', ""))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(ROOT)]))
    monkeypatch.setattr(
        general, "command_line", lambda *given: [part for part in command_line(*given) if part != "--log_samples"]
    )
    base = write_base(tmp_path / "base")
    folder = write_adapters(tmp_path / "adapters", ("REC",)) / "LLaVA_7B_lora_r16_REC"
    out = tmp_path / "out"
    arguments = ["--base", str(base), "--adapter", str(folder), "--label", "robustmerge", "--out", str(out)]
    assert general.main(arguments) == 0
    assert row(tables(out), "RobustMerge", "ours", 3) == ["", "12.5", ""]
    from transformers import LlavaForConditionalGeneration

    folded = LlavaForConditionalGeneration.from_pretrained(out / "models" / "robustmerge").state_dict()
    plain = LlavaForConditionalGeneration.from_pretrained(base).state_dict()
    assert sum(not folded[name].equal(plain[name].to(folded[name].dtype)) for name in plain) == 14 + 4


# --- scripts and page -------------------------------------------------------------------------------------------------


START = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv, kept = [script, "--help"], list(sys.path)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code
    sys.path[:] = kept
"""


def test_the_scripts_start_from_anywhere(tmp_path: Path) -> None:
    names = ["run.py", "tables.py", "general_benchmarks.py"]
    places = [str(ROOT / "benchmarks" / "mm_mergebench" / name) for name in names]
    command = [sys.executable, "-c", START, *places]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("usage:")] == names


def test_the_page_names_the_flags_that_exist() -> None:
    import re

    text = (ROOT / "docs" / "mm_mergebench.md").read_text()
    known = {
        flag for parser in (command.parser(), general.parser()) for action in parser._actions for flag in action.option_strings
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known
    assert "not run here" in text.lower()
    assert table.main([str(ROOT / "nowhere")]) == 0

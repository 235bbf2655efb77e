"""docs/quality.md says what the benchmark's command line and its results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quality.md").read_text()


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_the_commands_of_the_page_are_those_of_the_program() -> None:
    from quality.command import parser

    shown = re.findall(r"^python benchmarks/quality (.*?) *(?:#.*)?$", PAGE, re.MULTILINE)
    assert [parser().parse_args(line.split()).command for line in shown] == ["fetch", "train", "evaluate", "rank", "report"]


def test_the_flags_of_the_page_are_those_of_the_program() -> None:
    from quality.command import parser

    known = {flag for action in parser()._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known


@pytest.mark.parametrize("modality", ["text", "vision"])
def test_the_table_of_the_page_stands_in_the_results(modality: str) -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    section = results.partition(f"<!-- quality_{modality}: begin -->")[2].partition("<!-- quality_")[0]
    block = PAGE.partition(f"<!-- quality {modality}: begin -->")[2].partition("<!-- quality")[0]
    lines = [line.strip("| ").split(" | ") for line in block.strip().splitlines()[2:]]
    assert len(lines) >= 3
    for name, _, seen, unseen, *_ in lines:
        (row,) = [line for line in section.splitlines() if line.startswith(f"| {name} |") and line.count("|") == 13]
        assert f"| {seen} | {unseen} |" in row


@pytest.mark.parametrize("modality", ["text", "vision"])
def test_the_results_in_json_are_complete(modality: str) -> None:
    document = json.loads((ROOT / "benchmarks" / "quality" / "results" / f"{modality}.json").read_text())
    tested = {score["trial"]["setting"] for score in document["scores"] if score["trial"]["split"] == "test"}
    assert "zero-shot" in tested
    assert {json.dumps(chosen, sort_keys=True) for chosen in document["chosen"].values()} <= tested
    assert len(document["seen"]) >= 5
    assert document["unseen"]

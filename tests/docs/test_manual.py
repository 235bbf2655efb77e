"""`rmkit methods`: the list, and the page of every method and step."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from robustmerge_kit.cli.methods import methods
from robustmerge_kit.errors import RecipeError
from robustmerge_kit.methods import BUILTIN, find, names
from robustmerge_kit.report import manual
from robustmerge_kit.transforms import POST, PRE


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(methods, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list_holds_every_method_and_fits_120_columns():
    lines = printed().splitlines()
    assert max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines[1 : 1 + len(names())]] == list(names())


def test_the_list_says_what_a_choice_needs():
    head, *lines = printed().splitlines()
    assert head.split() == ["name", "kind", "paper", "spaces", "output", "rank", "needs", "data"]
    row = {line.split()[0]: " ".join(line.split()) for line in lines if line}
    assert row["ties"] == "ties elementwise 2306.01708 full core knots ctm factor by space - none"
    assert row["peft_ties"] == "peft_ties factor PEFT - max equal ranks none"
    assert row["slerp"] == "slerp coefficient Shoemake 1985 - sum 2 adapters none"
    assert row["svd"] == "svd coefficient PEFT - required - none"


def test_the_list_does_without_mergekit():
    script = "import sys; sys.modules['mergekit'] = None; from robustmerge_kit.cli import main; main(['methods', '--json'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, env={**os.environ}
    )
    listed = {row["name"]: row for row in json.loads(done.stdout)}
    assert "mergekit/ties" in listed
    assert listed["mergekit/ties"]["settings"] is None
    assert set(names()) == set(listed)


@pytest.mark.parametrize(
    ("method", "rank"),
    [
        ("robustmerge", "max, sum with variant: paper"),
        ("cat", "sum only"),
        ("tsv_m", "sum, or as rank_per_adapter says"),
        ("lora_lego", "max, or as rank says"),
        ("dare_ties", "by space"),
    ],
)
def test_output_ranks_are_read_off_the_records(method: str, rank: str):
    assert manual.facts(find(method)).rank == rank


@pytest.mark.parametrize(
    ("method", "random"),
    [("robustmerge", "with criterion: random"), ("dare_linear", "yes"), ("lora_lego", "yes"), ("ties", "no")],
)
def test_randomness_is_read_off_the_records(method: str, random: str):
    assert manual.facts(find(method)).random == random


def test_parameters_are_those_of_the_model():
    density, *_ = manual.parameters(find("ties").params)
    assert density == manual.Parameter("density", "number", "(0, 1]", "1.0", per_adapter=True)
    by_name = {each.name: each for each in manual.parameters(find("robustmerge").params)}
    assert by_name["clamp_quantile"].range == "[0, 1)"
    assert (by_name["clamp"].type, by_name["clamp"].default) == ("true or false", "see text")
    assert by_name["variant"].type == "official | paper | factor_sum"
    assert manual.parameters(find("slerp").params)[0].default == "required"


@pytest.mark.parametrize("name", [each.name for each in (*BUILTIN, *PRE, *POST)])
def test_a_page_has_a_header_the_parameters_and_the_docstring(name: str):
    lines = printed(name).splitlines()
    assert lines[0].startswith(f"{name}: ")
    assert max(map(len, lines)) <= 130
    found = manual.document(name)
    table = lines[lines.index("") + 1 :]
    assert [line.split()[0] for line in table[1 : 1 + len(found["parameters"])]] == [
        each["name"] for each in found["parameters"]
    ]
    assert found["page"].splitlines() == lines[-len(found["page"].splitlines()) :]
    assert "no manual page" not in found["page"]


def test_a_method_of_mergekit_has_a_page():
    pytest.importorskip("mergekit")
    text = printed("mergekit/ties")
    assert text.startswith("mergekit/ties: elementwise method; https://arxiv.org/abs/2306.01708\n")
    assert "lambda" in text


def test_json_of_one_method():
    found = json.loads(printed("ties", "--json"))
    assert (found["name"], found["rank"], found["equal_ranks"]) == ("ties", "by space", False)
    assert found["schema"]["properties"].keys() == {each["name"] for each in found["parameters"]}


@pytest.mark.parametrize(
    ("name", "hint"), [("norm_balanc", "norm_balance"), ("tie", "ties"), ("subspaceboost", "subspace_boost")]
)
def test_an_unknown_name_gets_the_nearest(name: str, hint: str):
    with pytest.raises(RecipeError) as caught:
        manual.page(name)
    assert hint in caught.value.hint

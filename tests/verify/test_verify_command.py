"""`rmkit verify` as it is typed: exit codes, what stands on stdout, what on stderr."""

import json
from pathlib import Path

import outputs
import pytest
import torch
from click.testing import CliRunner, Result

from robustmerge_kit.cli import rmkit
from robustmerge_kit.cli.failures import guarded


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A merged adapter beside its inputs."""
    return outputs.merge(tmp_path, outputs.write_inputs(tmp_path, torch.float32), "linear")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(rmkit, ["verify", *map(str, arguments)], standalone_mode=False)


def test_a_good_output(out: Path) -> None:
    result = call(out, "--all", "-v")
    assert result.return_value == 0
    assert result.stdout.splitlines()[-1] == "good"
    assert "4 of 4 sites" in result.stdout
    assert "independent (4)" in result.stdout
    assert "model.layers.1.up_proj" in result.stdout
    assert "no hash covers rmkit.json, README.md, rmkit.svg" in result.stderr


def test_quiet_says_the_answer_only_on_stdout(out: Path) -> None:
    result = call(out, "--quiet")
    assert result.stderr == ""
    assert result.stdout.endswith("good\n")


def test_a_bad_output(out: Path) -> None:
    outputs.flip(out / "adapter_model.safetensors", -3)
    result = call(out, "--all", "--json", "--quiet")
    assert result.return_value == 1
    found = json.loads(result.stdout)
    assert found["good"] is False
    assert found["problems"][0]["where"] == "adapter_model.safetensors"
    assert len(found["problems"]) == 2
    assert found["checked"] == {"sites": 4, "tensors": 0}
    assert {check["checked_by"] for check in found["checks"]} == {"independent"}


def test_a_missing_input_gives_3(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a1").rename(tmp_path / "elsewhere")
    assert guarded(rmkit, ["verify", str(out), "--inputs", str(tmp_path), "--json", "--quiet"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["errors"][0]["where"] == "./a1"
    assert "--inputs" in found["errors"][0]["hint"]


@pytest.mark.parametrize("flags", [["--all", "--samples", "3"], ["--inputs", "nowhere"], ["--samples", "-1"]])
def test_flags_that_contradict_or_make_no_sense(out: Path, flags: list[str]) -> None:
    assert guarded(rmkit, ["verify", str(out), *flags]) == 2

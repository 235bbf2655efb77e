"""`rmkit verify` as it is typed: exit codes, what stands on stdout, what on stderr."""

from pathlib import Path

import outputs
import pytest
import torch
from command_line import Call


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A merged adapter beside its inputs."""
    return outputs.merge(tmp_path, outputs.write_inputs(tmp_path, torch.float32), "linear")


def test_a_good_output(out: Path, call: Call) -> None:
    result = call("verify", out, "--all", "-v")
    assert result.code == 0
    assert result.out.splitlines()[-1] == "good"
    assert "4 of 4 sites" in result.out
    assert "independent (4)" in result.out
    assert "model.layers.1.up_proj" in result.out
    assert "no hash covers rmkit.json, README.md, rmkit.svg" in result.err


def test_quiet_says_the_answer_only_on_stdout(out: Path, call: Call) -> None:
    result = call("verify", out, "--quiet")
    assert result.err == ""
    assert result.out.endswith("good\n")


def test_a_bad_output(out: Path, call: Call) -> None:
    outputs.flip(out / "adapter_model.safetensors", -3)
    result = call("verify", out, "--all", "--json", "--quiet")
    assert result.code == 1
    found = result.json
    assert found["good"] is False
    assert found["problems"][0]["where"] == "adapter_model.safetensors"
    assert len(found["problems"]) == 2
    assert found["checked"] == {"sites": 4, "tensors": 0}
    assert {check["checked_by"] for check in found["checks"]} == {"independent"}


def test_a_missing_input_gives_3(out: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "a1").rename(tmp_path / "elsewhere")
    result = call("verify", out, "--inputs", tmp_path, "--json", "--quiet")
    assert result.code == 3
    found = result.json
    assert found["errors"][0]["where"] == "./a1"
    assert "--inputs" in found["errors"][0]["hint"]


@pytest.mark.parametrize("flags", [["--all", "--samples", "3"], ["--inputs", "nowhere"], ["--samples", "-1"]])
def test_flags_that_contradict_or_make_no_sense(out: Path, flags: list[str], call: Call) -> None:
    assert call("verify", out, *flags).code == 2

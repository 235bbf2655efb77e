"""`rmkit convert` as it is typed: what it prints, its exit codes, its JSON."""

import json
from pathlib import Path

import pytest
import torch
from trips import TEXT, UNET, bits, peft, read, to, write_names

from robustmerge_kit.cli import main
from robustmerge_kit.recipe.front_matter import parse_front_matter


def rmkit(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    peft(tmp_path / "unet", UNET)
    peft(tmp_path / "text", TEXT, extras={"head.weight": torch.ones(2)}, modules_to_save=["head"])


def test_one_line_says_what_became_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = rmkit(capsys, "convert", "unet", "k", "--to", "kohya")
    assert (code, out) == (0, f"peft -> kohya: 4 modules, bit for bit, into {tmp_path}/k\n")
    assert "converting: 100%" in err
    code, out, err = rmkit(capsys, "convert", "k/k.safetensors", "p", "--names", write_names(tmp_path / "n", [*UNET]))
    assert (code, out) == (0, f"kohya -> peft: 4 modules, bit for bit, into {tmp_path}/p\n")
    assert "note: nothing says what the base is called; --base-model does" in err
    assert bits(read("p")) == bits(read("unet"))


def test_quiet_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rmkit(capsys, "convert", "unet", "a", "--to", "diffusers", "--quiet") == (0, "", "")
    code, out, err = rmkit(capsys, "convert", "a", "b", "--json", "-q", "--base-model", "org/sd")
    assert (code, err) == (0, "")
    receipt = json.loads((tmp_path / "b" / "rmkit.json").read_text())
    assert json.loads(out) == {"path": str(tmp_path / "b"), **receipt}
    assert receipt["conversion"]["from"] == "diffusers"
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/sd"
    assert parse_front_matter((tmp_path / "b" / "README.md").read_text()) == {
        "base_model": "org/sd",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "tags": ["lora", "rmkit", "peft"],
    }


def test_what_is_dropped_or_scaled_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = rmkit(capsys, "convert", "text", "t", "--to", "kohya", "--drop-extras")
    assert code == 0
    assert "note: dropped head.weight" in err
    peft(Path("mixed"), UNET, alphas=(8, 3), dtype=torch.float16)
    code, out, err = rmkit(capsys, "convert", "mixed", "one", "--uniform")
    assert "scales folded into B" in out
    assert "note: 4 factors hold their scale; rounding them costs" in err


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("convert", 2, "Missing argument 'ADAPTER'"),
        ("convert unet k --to sdxl", 2, "'sdxl' is not one of"),
        ("convert unet k --rename model", 2, "'model' is not OLD=NEW"),
        ("convert unet k --alpha 0", 2, "0.0 is not in the range x>0"),
        ("convert unet k.safetensors", 2, "OUT is a folder"),
        ("convert nowhere k", 3, "nowhere: no such folder"),
        ("convert unet k --rename nothing=x", 3, "no module starts with 'nothing'"),
        ("convert text k --to diffusers", 4, "no place for tensors that are no LoRA factors: head.weight"),
        ("convert unet text", 5, "exists already"),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], line: str, code: int, message: str) -> None:
    found, out, err = rmkit(capsys, *line.split())
    assert (found, out) == (code, "")
    assert message in err


def test_repeating_a_conversion_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        to("unet", tmp_path / name / "lora", "kohya")
    assert (tmp_path / "a/lora/lora.safetensors").read_bytes() == (tmp_path / "b/lora/lora.safetensors").read_bytes()

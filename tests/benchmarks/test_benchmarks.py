"""The benchmark scripts measure what they say: known costs come out right, the baseline equals our own method."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = {"adapters": 3, "layers": 1, "hidden": 64, "inner": 96}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_case_holds_seven_sites_a_layer_in_the_published_names(tmp_path: Path) -> None:
    from cases import Case, write_case

    folders = write_case(tmp_path, Case(**SMALL, weights="safetensors"))
    assert [folder.name for folder in folders] == ["task1", "task2", "task3"]
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    assert len(tensors) == 14
    assert tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape == (16, 96)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert len(Case().sites()) == 224


def test_both_weight_formats_hold_the_same_numbers_and_adapters_differ(tmp_path: Path) -> None:
    from cases import Case, write_case

    bins = write_case(tmp_path / "bin", Case(**SMALL))
    safe = write_case(tmp_path / "safe", Case(**SMALL, weights="safetensors"))
    loaded = [torch.load(folder / "adapter_model.bin", weights_only=True) for folder in bins]
    for one, folder in zip(loaded, safe, strict=True):
        other = load_file(folder / "adapter_model.safetensors")
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    key = next(iter(loaded[0]))
    assert not torch.equal(loaded[0][key], loaded[1][key])


def test_the_baseline_is_the_official_procedure() -> None:
    from official_plain import merge

    golden = BENCHMARKS.parent / "tests" / "golden" / "robustmerge_official_fp32_r8"
    case = json.loads((golden / "case.json").read_text())
    inputs, expected = load_file(golden / "inputs.safetensors"), load_file(golden / "expected.safetensors")
    scale = case["adapters"][0]["scale"]
    stacks = {
        f"{site['name']}.lora_{factor}.weight": torch.stack(
            [inputs[f"{adapter['name']}.{site['name']}.lora_{factor}"] for adapter in case["adapters"]]
        )
        for site in case["sites"]
        for factor in "AB"
    }
    merged = merge(stacks)
    for site in (site["name"] for site in case["sites"]):
        found = scale * merged[f"{site}.lora_B.weight"].double() @ merged[f"{site}.lora_A.weight"].double()
        wanted = expected[f"{site}.lora_B"].double() @ expected[f"{site}.lora_A"].double()
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6


HOLD = """
import mmap, sys, time
block = bytearray(96 << 20)
with open(sys.argv[1], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    total = sum(pages[::4096])
    time.sleep(0.2)
print("held")
"""


def test_anonymous_and_mapped_memory_are_told_apart(tmp_path: Path) -> None:
    from measure import measure

    file = tmp_path / "mapped"
    file.write_bytes(b"\1" * (48 << 20))
    idle = measure([sys.executable, "-c", "import time; time.sleep(0.2)"])
    held = measure([sys.executable, "-c", HOLD, str(file)])
    assert held.code == 0
    assert held.output == "held\n"
    assert 90 << 20 < held.anonymous - idle.anonymous < 110 << 20
    assert 44 << 20 < held.mapped - idle.mapped < 56 << 20


def test_children_count_and_exit_codes_are_passed_on() -> None:
    from measure import measure

    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]]); sys.exit(3)"
    cost = measure([sys.executable, "-c", parent, "import time; block = bytearray(64 << 20); time.sleep(0.2)"])
    assert cost.code == 3
    assert cost.anonymous > 64 << 20
    assert cost.seconds > 0.2


def test_a_section_replaces_itself_and_leaves_the_others_alone(tmp_path: Path) -> None:
    from results import write_section

    path = tmp_path / "RESULTS.md"
    write_section("one", "One", "make one", "first", path)
    write_section("two", "Two", "make two", "second", path)
    before = path.read_text()
    write_section("one", "One", "make one", "third", path)
    assert path.read_text() == before.replace("first", "third")
    assert path.read_text().count("## ") == 2


def test_the_machine_is_described_without_its_name() -> None:
    from results import machine

    described = machine()
    assert f"torch {torch.__version__}" in described
    assert os.uname().nodename not in described


@pytest.mark.slow
def test_the_adapter_merge_benchmark_runs_on_a_small_case(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    command = [
        sys.executable,
        "adapter_merge.py",
        "--small",
        "--rounds",
        "1",
        "--scratch",
        str(tmp_path),
        "--results",
        str(results),
    ]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = results.read_text()
    assert "| plain : rmkit, .bin |" in text
    assert "| `rmkit validate`, 21 recipes |" in text
    assert str(tmp_path) not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RESULTS.md"]


@pytest.mark.slow
def test_the_analysis_benchmark_runs_on_a_small_case(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    arguments = ["--small", "--rounds", "1", "--scratch", str(tmp_path), "--results", str(results)]
    command = [sys.executable, "analyze.py", *arguments]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| robustmerge |" in results.read_text()


@pytest.mark.slow
def test_the_fold_benchmark_runs_on_a_small_case_with_optimal_rounding(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    command = [sys.executable, "fold.py", "--small", "--rounds", "1", "--scratch", str(tmp_path), "--results", str(results)]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = results.read_text()
    found = re.search(r"Error of the folded delta ([0-9.]+), one rounding of the exact sum ([0-9]+\.[0-9]+)", text)
    assert found is not None
    assert float(found[1]) <= 1.001 * float(found[2])
    assert "| rmkit : that bound |" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RESULTS.md"]


@pytest.mark.slow
def test_the_fold_benchmark_shows_growth(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    command = [sys.executable, "fold.py", "--small", "--growth", "--scratch", str(tmp_path), "--results", str(results)]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| ([0-9.]+) \| [0-9.]+ \| [0-9.]+ \|", results.read_text(), re.MULTILINE)
    assert len(rows) == 2
    assert "python benchmarks/fold.py --growth" in results.read_text()

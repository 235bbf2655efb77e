"""Fifty recipes, ten of them broken in ten ways, and what is to become of each; and batches in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from small_adapters import sites, write_adapters

ROOT = Path(__file__).absolute().parents[2]

WIDE = {"q_proj": (96, 80), "up_proj": (160, 80)}

GOOD: list[dict[str, Any]] = [
    {"merge_method": "linear"},
    {"merge_method": "linear", "parameters": {"weight": 0.5}, "output": {"dtype": "bfloat16"}},
    {"merge_method": "task_arithmetic", "parameters": {"gain": 0.4}},
    {"merge_method": "cat"},
    {"merge_method": "svd", "output": {"rank": 3}},
    {"merge_method": "robustmerge"},
    {"merge_method": "robustmerge", "parameters": {"variant": "paper", "density": 0.3}},
    {"merge_method": "ties", "parameters": {"density": 0.3}},
    {"merge_method": "ties", "space": "core", "parameters": {"density": 0.3}},
    {"merge_method": "ties", "space": "knots", "parameters": {"density": 0.5}},
    {"merge_method": "dare_linear", "parameters": {"density": 0.5}},
    {"merge_method": "dare_ties", "parameters": {"density": 0.5}, "seed": 7},
    {"merge_method": "breadcrumbs", "parameters": {"density": 0.5}},
    {"merge_method": "tsv_m"},
    {"merge_method": "iso_c"},
    {"merge_method": "wudi"},
    {"merge_method": "star"},
    {"merge_method": "model_stock"},
    {"merge_method": "linear", "overrides": [{"match": "*q_proj", "merge_method": "cat"}]},
    {"merge_method": "linear", "output": {"rank": {"energy": 0.9}}},
]
"""Each is written twice, with different adapters."""

NAN = float("nan")


def write_fifty(place: Path) -> tuple[Path, dict[str, str]]:
    """Recipes under `recipes`; by name, what must be said of each broken one."""
    first = write_adapters(place / "first", 3, where=sites(2, WIDE))
    second = write_adapters(place / "second", 2, where=sites(2, WIDE))
    recipes = place / "recipes"
    recipes.mkdir()

    def write(name: str, content: Mapping[str, Any] | str) -> None:
        (recipes / f"{name}.yaml").write_text(content if isinstance(content, str) else json.dumps(content))

    for number, keys in enumerate(GOOD):
        for label, adapters in (("a", first), ("b", second)):
            listed = [f"../{adapter.relative_to(place)}" for adapter in adapters]
            write(f"good{number:02}{label}", {"adapters": listed, "name": f"{label}{number}", **keys})
    (place / "half").mkdir()
    whole = (first[0] / "adapter_model.safetensors").read_bytes()
    (place / "half" / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    (place / "half" / "adapter_config.json").write_bytes((first[0] / "adapter_config.json").read_bytes())
    broken = bytearray(whole)
    broken[-400:] = b"\xff" * 400
    (place / "nan").mkdir()
    (place / "nan" / "adapter_model.safetensors").write_bytes(broken)
    (place / "nan" / "adapter_config.json").write_bytes((first[0] / "adapter_config.json").read_bytes())
    (place / "small").mkdir()
    write_adapters(place / "small", 1, where=sites(1, {"q_proj": (6, 5)}))
    (place / "merged" / "bad_taken").mkdir(parents=True)
    (place / "merged" / "bad_taken" / "mine.txt").write_text("not to be lost")
    pair = ["../first/adapter0", "../first/adapter1"]
    cases: dict[str, tuple[Mapping[str, Any] | str, str]] = {
        "bad_yaml": ("merge_method: [linear\n", "not valid YAML"),
        "bad_key": ({"merge_method": "linear", "adapters": pair, "wieght": 1}, "unknown key 'wieght'"),
        "bad_method": ({"merge_method": "lineer", "adapters": pair}, "no merge method is called 'lineer'"),
        "bad_plan": ({"merge_method": "svd", "adapters": pair}, "svd needs output.rank"),
        "bad_path": ({"merge_method": "linear", "adapters": ["../nowhere", pair[0]]}, "no such folder"),
        "bad_file": ({"merge_method": "linear", "adapters": ["../half", pair[0]]}, "truncated"),
        "bad_shape": ({"merge_method": "linear", "adapters": [pair[0], "../small/adapter0"]}, "different base models"),
        "bad_taken": ({"merge_method": "linear", "adapters": pair}, "exists already"),
        "bad_numbers": ({"merge_method": "linear", "adapters": [pair[0], "../nan"]}, "NaN"),
        "bad_empty": ("", "empty"),
    }
    for name, (content, _) in cases.items():
        write(name, content)
    return recipes, {name: said for name, (_, said) in cases.items()}


def environment(**more: str) -> dict[str, str]:
    """For a batch of this checkout, with short waits where tests would only wait."""
    path = os.pathsep.join([str(ROOT), *filter(None, [more.pop("PYTHONPATH", "")])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


def start(arguments: Sequence[str], cwd: Path, **more: str) -> "subprocess.Popen[str]":
    """`rmkit batch ...` in a process group of its own."""
    command = [sys.executable, "-m", "robustmerge_kit", "batch", *arguments]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"the batch hangs: {out}{err}") from None
    return process.returncode, out, err


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    """Weights and configuration of every finished output."""
    return {
        str(path.parent.relative_to(folder)): {
            each.name: each.read_bytes() for each in path.parent.iterdir() if each.name not in ("rmkit.json", "README.md")
        }
        for path in sorted(folder.rglob("rmkit.json"))
        if ".rmkit-" not in str(path)
    }

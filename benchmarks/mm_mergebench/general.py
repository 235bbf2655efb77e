"""POPE, MME and MMBench (Table 3) by lmms-eval, which takes whole models: fold, write its command line, run it, collect."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustmerge_kit.errors import InputError, UsageError
from robustmerge_kit.output import staged

from .candidates import read
from .failures import guarded
from .table import GENERAL

TASKS = {
    "POPE": ("pope", ("pope_f1_score",), 100.0),
    "MME": ("mme", ("mme_perception_score", "mme_percetion_score"), 1.0),
    "MMBench": ("mmbench_en_dev_static", ("gpt_eval_score",), 1.0),
}
"""Column -> lmms-eval's task, the names its metric has had, and what brings it to the paper's scale."""


def parser() -> argparse.ArgumentParser:
    """The flags of general_benchmarks.py."""
    found = argparse.ArgumentParser(
        prog="general_benchmarks.py", description="POPE, MME and MMBench of one model by lmms-eval."
    )
    add = found.add_argument
    add("--base", required=True, help="LLaVA-1.5 in transformers' layout")
    add("--adapter", help="folder of an adapter, e.g. a merge of run.py [none: the bare base]")
    add("--label", required=True, help="the row's name in the table, e.g. robustmerge")
    add("--out", type=Path, default=Path("mm_mergebench-results"), help="the --out of run.py [mm_mergebench-results]")
    add("--mmbench", default=TASKS["MMBench"][0], help=f"lmms-eval's task for MMBench [{TASKS['MMBench'][0]}]")
    add("--print", action="store_true", dest="only_print", help="print the command line and stop; nothing is folded")
    add("--collect", action="store_true", help="take the figures of a run that is over into the table, and stop")
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code, which is rmkit's for the same kind of failure, or lmms-eval's own."""
    options = parser().parse_args(arguments)
    return guarded(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Fold, evaluate, collect.

    Raises: RmkitError for a base or adapter that cannot be used, and where lmms-eval is not installed.
    """
    from .llava import check_base

    if "/" in options.label:
        raise UsageError(f"--label {options.label}: a name without /")
    logs = options.out / "general" / options.label
    if options.collect:
        return _save(options, logs)
    model = options.out / "models" / options.label if options.adapter else options.base
    line = command_line(str(model), logs, options.mmbench)
    print(shlex.join(line))
    if options.only_print:
        return 0
    if importlib.util.find_spec("lmms_eval") is None:
        raise UsageError(
            "lmms-eval is not installed here", hint="install it (pip install lmms-eval), then run this command again"
        )
    check_base(options.base)
    if options.adapter and not Path(model).exists():
        fold(options.base, options.adapter, Path(model))
    code = subprocess.run(line, check=False).returncode
    return code or _save(options, logs)


def command_line(model: str, logs: Path, mmbench: str = TASKS["MMBench"][0]) -> list[str]:
    """lmms-eval's command for the three benchmarks of one model folder or repository."""
    tasks = [TASKS["POPE"][0], TASKS["MME"][0], mmbench]
    return [
        *(sys.executable, "-m", "lmms_eval", "--model", "llava_hf", "--model_args", f"pretrained={model}"),
        *("--tasks", ",".join(tasks), "--batch_size", "1", "--log_samples", "--output_path", str(logs)),
    ]


def fold(base: str, adapter: str, target: Path) -> None:
    """Write the base with an adapter in its weights, whole or not at all, as `run.py` evaluates it.

    Raises: RmkitError when the adapter does not fit, or the folder cannot be written.
    """
    from transformers import AutoProcessor

    from .llava import Llava, choose_dtype

    llava = Llava.load(base, read(adapter, Path(adapter).name), "cpu", choose_dtype("float16", "cpu"))
    with staged(target, overwrite=False) as stage:
        llava.model.save_pretrained(stage)
        AutoProcessor.from_pretrained(base).save_pretrained(stage)


def collect(logs: Path, mmbench: str = TASKS["MMBench"][0]) -> dict[str, float]:
    """The three figures of the newest results file that lmms-eval wrote.

    Raises: InputError where there is none, or none of the figures is in it.
    """
    files = sorted(logs.rglob("*results.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise InputError("no results of lmms-eval (*results.json)", where=str(logs), hint="run without --collect first")
    results = json.loads(files[-1].read_text(encoding="utf-8")).get("results", {})
    found: dict[str, float] = {}
    for column, (task, names, factor) in TASKS.items():
        value = _metric(results.get(mmbench if column == "MMBench" else task, {}), names)
        if value is not None:
            found[column] = factor * value
    if not found:
        raise InputError(f"holds none of {', '.join(TASKS)}", where=str(files[-1]))
    return found


def _metric(results: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """lmms-eval writes `name,filter`; text stands where a metric was not computed."""
    for key, value in results.items():
        if key.partition(",")[0] in names and isinstance(value, int | float):
            return float(value)
    return None


def _save(options: argparse.Namespace, logs: Path) -> int:
    figures = collect(logs, options.mmbench)
    path = options.out / GENERAL
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content[options.label] = figures
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
    print(", ".join(f"{column} {value:.1f}" for column, value in figures.items()))
    return 0

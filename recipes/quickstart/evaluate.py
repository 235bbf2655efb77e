"""Print what merging did: `python recipes/quickstart/evaluate.py [LABEL=FOLDER ...]`.

One table: accuracy on every task's held-out images for the base, for each adapter on its own task, and for every merged
adapter, loaded by PEFT from the folder that `rmkit run` wrote. It prints what it finds, whoever wins.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from digits import ADAPTERS, HERE, TASKS, accuracy, load_base
from peft import PeftModel

MERGED = HERE.parent.parent / "merged"
DEFAULT = {
    "merged (RobustMerge)": MERGED / "quickstart",
    "merged (RobustMerge, paper)": MERGED / "robustmerge_paper",
    "merged (linear)": MERGED / "quickstart_linear",
}
MARGIN = 15.0


def with_adapter(folder: Path) -> PeftModel:
    """A fresh base that carries the adapter in `folder`."""
    return PeftModel.from_pretrained(load_base(), str(folder)).eval()


def base_accuracies() -> list[float]:
    """The base, which knows none of the tasks, on each of them."""
    return [accuracy(load_base(), task) for task in TASKS]


def single_accuracies() -> list[float]:
    """Every adapter on its own task.

    Raises: SystemExit if one does not beat the base by MARGIN points: then there would be nothing worth merging.
    """
    singles = [accuracy(with_adapter(ADAPTERS / task), task) for task in TASKS]
    for task, base, single in zip(TASKS, base_accuracies(), singles, strict=True):
        if single < base + MARGIN:
            raise SystemExit(
                f"{task}: the adapter reads {single:.1f} %, less than {MARGIN:g} points above the base's {base:.1f} %"
            )
    return singles


def merged_accuracies(folder: Path) -> list[float]:
    """One merged adapter on every task."""
    model = with_adapter(folder)
    return [accuracy(model, task) for task in TASKS]


def table(rows: dict[str, list[float]]) -> str:
    """Aligned text: one column per task and the mean."""
    head = [*TASKS, "mean"]
    first = max(len(label) for label in rows)
    lines = [" ".join([" " * first, *(f"{column:>10}" for column in head)])]
    for label, values in rows.items():
        lines.append(" ".join([f"{label:<{first}}", *(f"{value:10.1f}" for value in [*values, sum(values) / len(values)])]))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    folders = {label: Path(folder) for label, _, folder in (argument.partition("=") for argument in arguments)} or DEFAULT
    for folder in folders.values():
        if not (folder / "adapter_config.json").is_file():
            raise SystemExit(f"{folder}: no merged adapter here; run `make quickstart`, or `rmkit run` with the recipe first")
    rows = {"base": base_accuracies(), "single adapter, own task": single_accuracies()}
    rows |= {label: merged_accuracies(folder) for label, folder in folders.items()}
    print("accuracy in percent on held-out images")
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])

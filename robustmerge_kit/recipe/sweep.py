"""The `sweep` section: which values to try, how to choose among them, and what scores a merge."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from .strict import Strict, Text, one_of

Number = float | int
Timeout = Annotated[float, Field(gt=0)] | None

MOST_TRIALS = 100_000
MOST_VALUES = 1_000
"""Values of one list, which are all checked before anything is merged."""


class Range(Strict):
    """Numbers from low to high, both included: whole ones where the key takes no fractions."""

    low: Number = Field(description="Smallest value.")
    high: Number = Field(description="Largest value.")
    step: Annotated[float, Field(gt=0)] | Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="Only low, low + step, ..; needed by `grid`."
    )
    log: bool = Field(default=False, description="Spread evenly over the orders of magnitude; for low > 0, without step.")


Dimension = Annotated[
    Annotated[Range, Tag("<options>")] | Annotated[list[Any], Field(min_length=1, max_length=MOST_VALUES), Tag("<values>")],
    one_of(options="{low: .., high: ..}", values="a list of values"),
]
"""A range; or a list of values, which is a gradient to be searched where it holds ranges."""


class Reading(Strict):
    """Where a command leaves its number, if not as the last one on stdout."""

    file: Text = Field(
        description="JSON file, in the trial's folder unless the path says otherwise; {work} and {out} are replaced, and of a "
        "pattern like {work}/**/results_*.json the newest match counts."
    )
    key: Text | Annotated[list[Text | int], Field(min_length=1)] | None = Field(
        default=None,
        description="Way to the number in the file, results.mean; as a list where names hold dots; left out: the file is one.",
    )


class CommandEvaluation(Strict):
    """A command that scores one merged folder."""

    command: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        description="Words, or a line that is split like a shell does; it runs without a shell, in the folder of the recipe. "
        "{out} is the merged folder, {work} the trial's own folder, {trial} its number, {python} this Python."
    )
    value: Reading | None = Field(default=None, description="Where the number is; default: the last one on stdout.")
    timeout: Timeout = Field(default=None, description="Seconds after which the trial has failed; default: none.")


class PythonEvaluation(Strict):
    """A Python function that scores one merged folder."""

    python: Annotated[str, Field(pattern=r"^([A-Za-z_][\w.]*|[^:]+\.py):[A-Za-z_][\w.]*$")] = Field(
        description="module:function or file.py:function, called as function(folder, params) in a process of its own that "
        "stays for all trials; files and modules are found beside the recipe, modules also where Python finds them."
    )
    timeout: Timeout = Field(default=None, description="Seconds after which the trial has failed; default: none.")


Evaluation = Annotated[
    Annotated[Literal["diagnostics"], Tag("<name>")]
    | Annotated[CommandEvaluation, Tag("<command>")]
    | Annotated[PythonEvaluation, Tag("<python>")],
    one_of(name="diagnostics", command="{command: ..}", python="{python: module:function}"),
]


class Sweep(Strict):
    """A search for the recipe's best values."""

    search: dict[str, Dimension] = Field(
        min_length=1,
        description="Ways to keys of this recipe, each with a range or a list of values: parameters.density, merge_method, "
        "adapters[0].parameters.weight.",
    )
    evaluate: Evaluation = Field(description="What scores a merge: a command, a Python function, or diagnostics.")
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe", description="How values are chosen: tpe (by what was good so far), random, or grid (all combinations)."
    )
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = Field(
        default=None, description="How many merges to try; a grid without it is tried whole."
    )
    seed: int = Field(default=0, description="Seed of the choice.")
    direction: Literal["maximize", "minimize"] = Field(default="maximize", description="Whether more is better, or less.")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Stop when so many trials in a row were no better than the best before them."
    )
    startup: Annotated[int, Field(ge=1)] = Field(default=10, description="Random trials before tpe begins to choose.")

"""Recipes as text: data written out, and a first recipe for adapters at hand, every key explained."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ..errors import RmkitError
from .yaml_text import read_yaml

METHOD = "robustmerge"


@dataclass(frozen=True)
class Found:
    """What a first recipe tells of one adapter."""

    reference: str
    label: str
    ranks: tuple[int, ...]
    base: str | None
    sites: int


@dataclass(frozen=True)
class Answer:
    """What a first recipe says for a key instead of its default, and the reason."""

    value: str | Mapping[str, str]
    why: str


def starter(adapters: Sequence[Found], answers: Mapping[str, Answer] | None = None) -> str:
    """The commented recipe that merges these adapters by RobustMerge with the settings its authors released.

    `answers` replaces the values of missing, extras, format and path.
    """
    answers = answers or {}
    bases = Counter(adapter.base for adapter in adapters if adapter.base)
    base = bases.most_common(1)[0][0] if bases else None
    lines = [
        "# A recipe for rmkit: `rmkit plan` shows what it would do, `rmkit run` does it.",
        "",
        "# How adapters are merged; `rmkit methods` lists all methods, `rmkit methods NAME` explains one.",
        f"merge_method: {METHOD}",
        "",
        "# The inputs: folders relative to this file, or org/name[@revision][:subfolder]. The weight is a coefficient.",
        "adapters:",
    ]
    labels = Counter(adapter.label for adapter in adapters)
    for adapter in adapters:
        lines.append(f"  - adapter: {_scalar(adapter.reference)}  # {_facts(adapter)}")
        if adapter.label and labels[adapter.label] == 1:
            lines.append(f"    name: {_scalar(adapter.label)}")
        lines.append("    parameters: {weight: 1.0}")
    lines += [
        "",
        "# Settings of the method; a value may also be a gradient over the layers, [first, .., last].",
        "parameters:",
        "  variant: official  # what the authors released; paper: exact, rank is the sum of ranks; factor_sum: gain once",
        "  density: 0.2       # fraction of every factor's entries that is kept",
        "  gain: 2.0          # output multiplier; in `official` it enters both factors",
        "",
        "# The model the adapters were trained on; needed to fold.",
        f"base_model: {_scalar(base)}" if base else "# base_model: org/name",
        "",
        *_line(answers, "missing", "error  ", "a site only some adapters have: error, zero or renormalize"),
        *_line(answers, "extras", "error   ", "tensors outside LoRA that differ: error, mean, first, {first: NAME} or drop"),
        "seed: 0         # for methods that draw random numbers",
        "",
        "output:",
        "  kind: adapter      # what is written",
        "  rank: auto         # auto (the method's own), sum, max, a number, {energy: 0.99} or {budget: {average: 16}}",
        *_line(answers, "format", "peft       ", "peft, llava, or same as the inputs'", "  "),
        "  # dtype: bfloat16  # default: the inputs' own",
        *(
            _line(answers, "path", "", "folder to write, where the command line names none", "  ")
            if "path" in answers
            else ["  # path: merged     # folder to write, where the command line names none"]
        ),
        "",
    ]
    return "\n".join(lines)


def as_yaml(data: Any, header: str) -> str:
    """YAML that reads back as the same data, below a comment; JSON, which is YAML too, where YAML's writer fails at that."""
    stream = io.StringIO()
    writer = YAML()
    writer.width = 120
    try:
        writer.dump(data, stream)
        text = header + stream.getvalue()
        if read_yaml(text, "").data == data:
            return text
    except (RmkitError, YAMLError):
        pass
    return header + json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _line(answers: Mapping[str, Answer], key: str, default: str, comment: str, indent: str = "") -> list[str]:
    """A key with its default, or with its answer below the reason for it; both with the comment."""
    answer = answers.get(key)
    if answer is None:
        return [f"{indent}{key}: {default}# {comment}"]
    value = answer.value
    text = _scalar(value) if isinstance(value, str) else f"{{{', '.join(f'{k}: {_scalar(v)}' for k, v in value.items())}}}"
    why = "".join(letter if letter.isprintable() else "?" for letter in answer.why)
    return [
        *(f"{indent}# {line}" for line in textwrap.wrap(why, 110, break_on_hyphens=False, break_long_words=False)),
        f"{indent}{key}: {text}  # {comment}",
    ]


def _facts(adapter: Found) -> str:
    ranks = sorted(set(adapter.ranks))
    rank = "rank ?" if not ranks else f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    base = f", base {adapter.base}" if adapter.base and adapter.base.isprintable() else ""
    return f"{rank}, {adapter.sites} sites{base}"


def _scalar(text: str) -> str:
    """Text as YAML writes it: plain where that reads back as the same text, else in quotes."""
    if re.fullmatch(r"[A-Za-z0-9_./~][A-Za-z0-9_./@~+-]*", text) and read_yaml(f"key: {text}", "").data == {"key": text}:
        return text
    escaped = "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text.replace("\\", "\\\\"))
    return '"' + escaped.replace('"', '\\"') + '"'

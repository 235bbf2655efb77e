"""What a receipt says, in a few lines for a human."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOO_MUCH = 0.1
"""Share of the merged update that a rank limit may lose before a warning."""


def summary(content: Mapping[str, Any], folder: Path) -> Sequence[str]:
    """A few lines for a human, from a receipt."""
    totals, output = content["totals"], content["output"]
    rank = f"rank {output['rank']}" if output["rank"] else "ranks by site"
    base = "the base and " if output["kind"] == "model" else ""
    facts = [content["settings"]["merge_method"], "" if base else rank, output["dtype"], f"{content['timings']['total']:.2f} s"]
    lines = [
        f"merged {base}{counted(len(content['inputs']), 'adapter')} at {counted(totals['sites'], 'site')} into {folder}",
        ", ".join(filter(None, facts)),
        f"energy kept {totals['retained_energy']:.4%}, rounding error {totals['rounding_error']:.2e}",
        *filter(None, (conflict(content), memory(content))),
    ]
    if totals["retained_energy"] < 1 - TOO_MUCH:
        lines.append(
            f"warning: the rank limit loses {1 - totals['retained_energy']:.1%} of the merged update; "
            "raise output.rank to keep more"
        )
    served = content["serving"]
    if served["command"]:
        lines.append(f"to serve it (not tried here): {served['command'].replace('FOLDER', shlex.quote(str(folder)))}")
    lines.extend(filter(None, [served["note"]]))
    return lines


def counted(count: int, noun: str) -> str:
    """The number with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def conflict(content: Mapping[str, Any]) -> str:
    """The two inputs that pull apart most, by the cosine of their updates; "" where there are no two."""
    measured = content["conflict"]
    if measured is None or measured["lowest"] is None:
        return ""
    first, second = measured["lowest"]["inputs"]
    cosine = measured["lowest"]["cosine"]
    found = "largest conflict" if cosine < 0 else "no conflict, least alike"
    every = content["totals"]["sites"]
    where = "" if measured["sites"] == every else f", measured at {measured['sites']} of {every} sites"
    return f"{found}: {first} and {second}, cosine {cosine:.4f}{where}"


def memory(content: Mapping[str, Any]) -> str:
    """The peak of memory; "" where the system does not say."""
    known = content["memory"]
    if not known.get("peak_resident"):
        return ""
    return f"peak memory {_gigabytes(known['peak_resident'])}, anonymous {_gigabytes(known['peak_anonymous'])}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

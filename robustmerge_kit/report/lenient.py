"""Adapters opened to be looked at: what a merge would refuse but can be understood is remarked on instead."""

from __future__ import annotations

from ..adapters import Adapter, read_adapter
from ..errors import RmkitError
from ..sources import Source


def read_leniently(source: Source, label: str) -> tuple[Adapter, list[str]]:
    """The adapter and remarks; one trained on a modified base stops a merge, but not a look at it.

    Raises: InputError for everything else that is broken, as `read_adapter` does.
    """
    try:
        return read_adapter(source, label=label, allow=("known_init",)), []
    except RmkitError as refusal:
        try:
            adapter = read_adapter(source, label=label, allow=("modified_init",))
        except RmkitError:
            raise refusal from None
        return adapter, [f"a merge refuses it: {refusal.what}"]

"""Numbered pairs of the Sam_LoRA and LoRA-ViT family: `w_a_000`, `w_b_000`, no configuration, no module names.

Index 2i is q, 2i+1 is v of block i. Sites are named by their number.
"""

from __future__ import annotations

import re

from .adapter import Adapter, Extra, SiteFactors
from .opened import Opened, dtype_notes, refuse_unpaired, scale_of
from .peft import make_site

KEY = re.compile(r"w_(?P<half>[ab])_(?P<number>\d+)(\.weight)?")


def read_numbered(opened: Opened) -> Adapter:
    """Read numbered pairs; the scale is 1 unless the recipe gives alpha.

    Raises: InputError when halves are missing or do not fit.
    """
    halves: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    extras: dict[str, Extra] = {}
    for raw, ref in opened.tensors.items():
        match = KEY.fullmatch(raw)
        if match:
            halves[match["half"]][match["number"]] = raw
        else:
            extras[raw] = Extra(ref, "saved")
    refuse_unpaired(halves["a"], halves["b"], opened.where, ("w_a", "w_b"))
    sites: dict[str, SiteFactors] = {}
    for number, raw in halves["a"].items():
        site = make_site(number, opened.tensors[raw], opened.tensors[halves["b"][number]], "linear", opened.where)
        scale = 1.0 if opened.alpha is None else scale_of(opened.alpha, site.rank)
        sites[number] = SiteFactors(site.a, site.b, scale)
    word = "scale is 1" if opened.alpha is None else f"scale is {opened.alpha:g} / rank by the recipe"
    notes = (
        *opened.notes,
        f"numbered pairs: the file does not name its modules; {word}",
        *dtype_notes([s.a for s in sites.values()]),
    )
    return Adapter(opened.label, opened.source, "numbered", sites, opened.config or {}, opened.files, extras, None, notes)

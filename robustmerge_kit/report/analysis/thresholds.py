"""Where the verdict begins to speak; the only place that holds these numbers."""

from __future__ import annotations

from collections.abc import Mapping

from .records import Threshold


def _at(value: float, meaning: str) -> Threshold:
    return Threshold(value=value, meaning=meaning)


THRESHOLDS: Mapping[str, Threshold] = {
    "untrained": _at(0, "norm of all updates of an adapter together, at which there is nothing to merge"),
    "opposed": _at(-0.1, "cosine at or below which two updates work against each other"),
    "opposed_site": _at(-0.3, "the same at a single site, where the updates as a whole do not"),
    "signs": _at(0.55, "share of opposite signs from which on two updates fight entry by entry; unrelated ones have 0.5"),
    "related": _at(0.15, "cosine from which on two updates point the same way"),
    "same": _at(0.9, "cosine from which on two updates are one and the same"),
    "collide": _at(0.15, "overlap of subspaces from which on two updates that are not related use the same directions"),
    "collide_chance": _at(3, "the same as a multiple of k / d, the overlap of random subspaces"),
    "apart": _at(0.05, "cosine, in magnitude, up to which two updates do not touch"),
    "norm_ratio": _at(3, "largest norm over smallest from which on the smallest update is drowned out"),
    "kept": _at(0.9, "share of the merged update that the output's rank must keep: it may lose 10 %"),
    "destroyed": _at(0.5, "share of an update from which on the merge has destroyed it"),
    "turned": _at(0.3, "|cosine| up to which the strongest direction of an update is not found again in the merged one"),
    "invented": _at(0.75, "share of the merged update that no adapter asked for, from which on it is named"),
    "shrunk": _at(0.2, "projection up to which an update is too small in the merge"),
    "inflated": _at(2, "projection from which on an update is too large in the merge"),
    "steep": _at(
        5, "largest singular value over the median one, mean over the sites, from which on weak directions are at risk"
    ),
    "keeps_more": _at(0.1, "by how much less a method destroys, mean over the adapters, to be worth trying"),
    "keeps_directions": _at(0.1, "by how much better a method keeps the strongest directions, mean over adapters and sides"),
}
